// Shows /openapi.json: the operations, their parameters and their answers.

const $ = (id) => document.getElementById(id);

function element(tag, ...content) {
  const made = document.createElement(tag);
  made.append(...content.map((part) => part ?? ""));
  return made;
}

/** Appends text; the parts between backquotes become code. */
function prose(target, text) {
  for (const [n, part] of (text || "").split("`").entries()) target.append(n % 2 ? element("code", part) : part);
  return target;
}

function resolve(schema, all) {
  return schema?.$ref ? all.components.schemas[schema.$ref.split("/").pop()] : schema;
}

function typeOf(schema, all) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return choices.map((choice) => typeOf(choice, all)).join(" or ");
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.type === "array") return `list of ${typeOf(schema.items, all)}`;
  if (schema.contentMediaType || schema.format === "binary") return "file";
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const range = low !== undefined && schema.maximum !== undefined && schema.maximum < 1e9 ? ` ${low} to ${schema.maximum}` : "";
  return (schema.type || "") + range;
}

function table(rows) {
  const made = element("table", element("tr", ...["name", "what", "about"].map((text) => element("th", text))));
  for (const { name, schema, required, description, all } of rows) {
    const kind = typeOf(schema, all) + (required ? "" : schema.default !== undefined ? `, ${JSON.stringify(schema.default)} if not given` : ", optional");
    made.append(element("tr", element("td", element("code", name)), element("td", kind), prose(element("td"), description || schema.description)));
  }
  return made;
}

function fields(schema, all) {
  const whole = resolve(schema, all);
  return Object.entries(whole?.properties || {}).map(([name, part]) => ({
    name, schema: part, required: (whole.required || []).includes(name), all,
  }));
}

function curl(method, path, body, all) {
  const type = body ? Object.keys(body.content)[0] : "";
  const shown = path.replace("{id}", "0").replace("{number}", "0");
  let line = `curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}${location.origin}${shown}`;
  if (type === "multipart/form-data") {
    const file = fields(body.content[type].schema, all).find((field) => typeOf(field.schema, all).includes("file"));
    line += ` -F ${file.name}=@person.jpg`;
  }
  else if (type) line += ` -H 'Content-Type: ${type}' -d '{…}'`;
  return line;
}

function operation(method, path, what, all) {
  const summary = element("summary", element("span", method.toUpperCase()), element("code", path), element("span", what.description.split(".")[0]));
  summary.firstChild.className = "method";
  summary.lastChild.className = "faint";
  const made = element("details", summary, prose(element("p"), what.description), element("pre", element("code", curl(method, path, what.requestBody, all))));
  const parameters = (what.parameters || []).map((parameter) => ({ ...parameter, all }));
  const body = what.requestBody ? fields(Object.values(what.requestBody.content)[0].schema, all) : [];
  if (parameters.length + body.length) made.append(element("h3", "Takes"), table([...parameters, ...body]));
  for (const [status, response] of Object.entries(what.responses)) {
    if (status >= "400") continue;
    const [type, content] = Object.entries(response.content || {})[0] || ["", null];
    const schema = content?.schema;
    made.append(element("h3", `Answers ${status}${type ? `, ${type}` : ""}`));
    const rows = fields(schema?.items || schema, all);
    if (rows.length) made.append(table(rows.map((row) => ({ ...row, required: true }))));
  }
  const list = element("p");
  for (const [status, response] of Object.entries(what.responses)) if (status >= "400") list.append(element("code", status), ` ${response.description} `);
  made.append(element("h3", "Refuses"), list);
  return made;
}

try {
  const answer = await fetch("/openapi.json");
  const all = await answer.json();
  if (!answer.ok) throw new Error(answer.status === 401 ? "it needs the token, for which the search page asks" : all.error);
  $("facts").textContent = `version ${all.info.version}`;
  prose($("about"), all.info.description);
  for (const tag of all.tags) {
    const section = element("section", element("h2", tag.name[0].toUpperCase() + tag.name.slice(1)), element("p", tag.description));
    for (const [path, methods] of Object.entries(all.paths))
      for (const [method, what] of Object.entries(methods)) if (what.tags[0] === tag.name) section.append(operation(method, path, what, all));
    $("operations").append(section);
  }
} catch (error) {
  $("error").textContent = `The description cannot be shown: ${error.message}`;
}
