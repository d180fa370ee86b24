"""List the commands: python -m han_tf."""

import ast
import sys
from pathlib import Path

from han_tf.common import cli as command_line

FLAGS = command_line.Flags()

HERE = Path(__file__).parent


def commands() -> dict[str, str]:
    """Returns the commands, ``python -m han_tf.NAME``: NAME -> the first line of its docstring."""
    files = {path.stem: path for path in HERE.glob("[!_]*.py")}
    files |= {path.parent.name: path for path in HERE.glob("*/__main__.py")}
    files["data.synthetic"] = HERE / "data" / "synthetic" / "__main__.py"
    texts = {name: ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) for name, path in files.items()}
    return {name: texts[name].splitlines()[0] for name in sorted(texts)}


def main(values: command_line.Flags) -> None:
    """Prints the list."""
    if values.positional:
        name = values.positional[0].removeprefix("han_tf.")
        known = f"expected python -m han_tf.{name}" if name in commands() else f"no command {name!r}"
        raise command_line.UsageError(f"{known}; python -m han_tf lists the commands")
    print("python -m han_tf.COMMAND --help lists the flags of a command.\n")
    for name, line in commands().items():
        print(f"  {name:<16}{line}")


if __name__ == "__main__":
    sys.exit(command_line.run(main, FLAGS, __doc__, positional="COMMAND"))
