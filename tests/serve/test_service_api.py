"""The service over HTTP, with a real network and a real gallery."""

import hashlib
import io
import json
import re
import tempfile
import threading

import httpx
import numpy as np
import pytest
from PIL import Image

from han_tf.common.errors import UserError
from han_tf.data.reading import decode_image
from han_tf.search import create_gallery, open_gallery
from han_tf.serve import pictures as pictures_module
from han_tf.serve.access import Access
from han_tf.serve.limits import Limits
from han_tf.serve.service import Example, Service
from han_tf.serve.store import Store
from tests.serve.serving import FIRST_TIME, client_of, encoded, noise, on_socket, wait_for


@pytest.fixture(scope="module")
def shared(make_service, tmp_path_factory):
    """A client of a service that no test changes; its threshold is 0.1."""
    with client_of(make_service(tmp_path_factory.mktemp("shared"), threshold=0.1)) as client:
        yield client


@pytest.fixture(scope="module")
def query(tiny_set):
    with open(tiny_set.query[0].path, "rb") as stream:
        return stream.read()


def upload(data):
    return {"image": ("query.jpg", data, "image/jpeg")}


def ids(answer):
    return [hit["id"] for hit in answer.json()["hits"]]


def error_of(response, status):
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (error,) = response.json().values()
    assert "\n" not in error
    assert "Traceback" not in error
    return error


# ------------------------------------------------------------------------------------------------ search and embed


def test_embed_gives_what_the_extractor_gives(shared, query, tiny_set, extractor):
    answer = shared.post("/embed", files=upload(query)).json()
    np.testing.assert_allclose(answer["feature"], extractor([tiny_set.query[0].path])[0], atol=1e-6)
    assert answer["model"] == extractor.checksum
    assert answer["sha256"] == hashlib.sha256(query).hexdigest()


def test_search_ranks_like_a_full_sort(shared, query, tiny_set, extractor, gallery_features):
    answer = shared.post("/search", files=upload(query), data={"k": 7}).json()
    feature = extractor([tiny_set.query[0].path])[0]
    distances = np.linalg.norm(gallery_features - feature, axis=1)
    order = np.argsort(distances, kind="stable")[:7]
    assert [hit["id"] for hit in answer["hits"]] == order.tolist()
    np.testing.assert_allclose([hit["distance"] for hit in answer["hits"]], distances[order], atol=1e-5)
    for hit, index in zip(answer["hits"], order):
        record = tiny_set.gallery[index]
        assert (hit["pid"], hit["camid"], hit["time"]) == (record.pid, record.camid, FIRST_TIME + 60 * index)
        assert record.path.endswith(hit["name"])
        assert hit["beyond"] == (hit["distance"] > 0.1)
        assert hit["verdict"] is None
    assert answer["query"] == "sha256:" + hashlib.sha256(query).hexdigest()


def test_known_and_unknown_people(shared, query):
    nearest = shared.post("/search", files=upload(query), data={"k": 5}).json()["hits"]
    between = (nearest[1]["distance"] + nearest[2]["distance"]) / 2
    known = shared.post("/search", files=upload(query), data={"k": 5, "threshold": between}).json()
    assert (known["known"], known["threshold"]) == (True, between)
    assert [hit["beyond"] for hit in known["hits"]] == [False, False, True, True, True]
    unknown = shared.post("/search", files=upload(query), data={"k": 5, "threshold": 0}).json()
    assert unknown["known"] is False
    assert [hit["id"] for hit in unknown["hits"]] == [hit["id"] for hit in nearest]
    assert all(hit["beyond"] for hit in unknown["hits"])


def test_without_a_threshold_known_is_null(client, query):
    answer = client.post("/search", files=upload(query)).json()
    assert answer["known"] is answer["threshold"] is None
    assert not any(hit["beyond"] for hit in answer["hits"])
    assert len(answer["hits"]) == 20


def test_an_entry_is_no_hit_of_itself(shared, gallery_features):
    answer = shared.post("/search", data={"id": 4, "k": 6})
    distances = np.linalg.norm(gallery_features - gallery_features[4], axis=1)
    distances[4] = np.inf
    assert ids(answer) == np.argsort(distances, kind="stable")[:6].tolist()
    assert answer.json()["query"] == "id:4"


def test_filters(shared, tiny_set):
    cameras = np.array([record.camid for record in tiny_set.gallery])

    def found(**form):
        return sorted(ids(shared.post("/search", data={"id": 0, "k": 200, **form})))

    def expected(mask):
        return [index for index in np.flatnonzero(mask) if index != 0]

    numbers = np.arange(len(cameras))
    assert found() == expected(cameras > 0)
    assert found(cameras=[1, 3]) == expected(np.isin(cameras, [1, 3]))
    assert found(not_cameras=[1, 3]) == expected(~np.isin(cameras, [1, 3]))
    assert found(after=FIRST_TIME + 120, before=FIRST_TIME + 600) == expected((numbers >= 2) & (numbers < 10))
    assert found(cameras=[77]) == []
    pids = np.array([record.pid for record in tiny_set.gallery])
    assert found(pids=[int(pids[3]), 10**9]) == expected(pids == pids[3]) != []


def test_reranking_sorts_anew_and_keeps_distances(shared, query):
    plain = shared.post("/search", files=upload(query), data={"k": 200}).json()["hits"]
    anew = shared.post("/search", files=upload(query), data={"k": 200, "rerank": True}).json()
    assert anew["reranked"] is True
    distances = {hit["id"]: hit["distance"] for hit in plain}
    for hit in anew["hits"]:
        assert hit["distance"] == pytest.approx(distances[hit["id"]], abs=1e-5)
    assert [hit["id"] for hit in anew["hits"]] != [hit["id"] for hit in plain]
    assert {hit["id"] for hit in anew["hits"]} == set(distances)
    # The nearest hit decides whether the person is known, even if re-ranking puts another one first.
    few = {"k": 1, "rerank": True, "threshold": plain[0]["distance"] + 1e-6}
    for data in (few, {**few, "threshold": plain[0]["distance"] - 1e-3}):
        answer = shared.post("/search", files=upload(query), data=data).json()
        assert answer["known"] is (data is few)


@pytest.mark.parametrize(
    ("form", "named"),
    [
        ({}, "neither image nor id given"),
        ({"id": "x"}, "id is 'x'"),
        ({"id": "-1"}, "id"),
        ({"id": str(2**63)}, "id"),
        ({"id": "0", "k": "0"}, "k is '0'"),
        ({"id": "0", "k": "201"}, "k"),
        ({"id": "0", "threshold": "-1"}, "threshold"),
        ({"id": "0", "threshold": "nan"}, "threshold"),
        ({"id": "0", "cameras": "x"}, "cameras"),
        ({"id": "0", "cameras": str(2**64)}, "cameras"),
        ({"id": "0", "after": "inf"}, "after"),
        ({"id": "0", "before": "253402300800"}, "before is '253402300800'"),
        ({"id": "0", "after": "-62135596801"}, "after is '-62135596801'"),
        ({"id": "0", "after": "5", "before": "5"}, "after is 5 and before 5, expected after < before"),
        ({"id": "0", "rerank": "perhaps"}, "rerank"),
        ({"id": "0", "camera": "1"}, "camera is no filter, expected cameras, not_cameras, after, before, pids"),
    ],
)
def test_what_a_search_refuses(shared, form, named):
    assert named in error_of(shared.post("/search", data=form), 422)


def test_fields_that_would_be_lost(client, query):
    answer = client.post("/search?cameras=1", files=upload(query))
    assert error_of(answer, 422) == "cameras is in the address, expected all fields in the form"
    before = client.get("/gallery", params={"limit": 1000}).json()
    for path, files, expected in (
        ("/gallery", upload(query), "image, pid, camid, time, name"),
        ("/gallery/batch", {"images": upload(query)["image"]}, "images, pid, camid, time"),
    ):
        refusal = error_of(client.post(path, files=files, data={"camera": 3}), 422)
        assert refusal == f"camera is no field of the form, expected {expected}"
    assert "tme" in error_of(client.patch("/gallery/3", json={"pid": 8, "tme": 5}), 422)
    assert client.get("/gallery", params={"limit": 1000}).json() == before


def test_both_an_image_and_an_id(shared, query):
    assert "both" in error_of(shared.post("/search", files=upload(query), data={"id": 0}), 422)


@pytest.mark.parametrize("path", ["/embed", "/search", "/gallery", "/attention"])
def test_bad_images(shared, path):
    assert "not an image" in error_of(shared.post(path, files=upload(b"no image")), 415)
    assert "damaged or truncated" in error_of(shared.post(path, files=upload(encoded(noise())[:200])), 422)
    assert "empty" in error_of(shared.post(path, files=upload(b"")), 422)
    bomb = encoded(Image.new("L", (5000, 5000)))
    assert len(bomb) < 100_000
    assert "25,000,000 pixels" in error_of(shared.post(path, files=upload(bomb)), 413)
    assert "image" in error_of(shared.post(path, data={"image": "a string"}), 422)
    assert "bytes" in error_of(shared.post(path, files=upload(b"x" * (8 * 2**20))), 413)


def test_an_unknown_entry(shared):
    for response in (
        shared.post("/search", data={"id": 999}),
        shared.get("/gallery/999"),
        shared.get("/gallery/999/image"),
        shared.get("/gallery/999/attention"),
        shared.delete("/gallery/999"),
        shared.post("/feedback", json={"query": "id:1", "hit": 999, "verdict": "right"}),
    ):
        assert "no entry 999" in error_of(response, 404)


# ------------------------------------------------------------------------------------------------------- gallery


def test_add_find_and_delete(client):
    picture = encoded(noise(64, 32))
    form = {"pid": 7, "camid": 12, "time": 1.5e9, "name": "Ä person"}
    answer = client.post("/gallery", files=upload(picture), data=form)
    assert answer.status_code == 201
    id = answer.json()["id"]
    assert client.get(f"/gallery/{id}").json() == {"id": id, "name": "Ä person", "pid": 7, "camid": 12, "time": 1.5e9}
    found = client.post("/search", files=upload(picture), data={"k": 1}).json()["hits"][0]
    assert found["id"] == id
    assert found["distance"] < 1e-3
    assert 12 in client.get("/overview").json()["cameras"]
    shown = np.asarray(Image.open(io.BytesIO(client.get(f"/gallery/{id}/image").content)))
    assert shown.shape == (64, 32, 3)
    assert client.delete(f"/gallery/{id}").json() == {"id": id}
    assert "no entry" in error_of(client.get(f"/gallery/{id}/image"), 404)
    assert "no entry" in error_of(client.delete(f"/gallery/{id}"), 404)
    assert id not in ids(client.post("/search", files=upload(picture), data={"k": 200}))


def test_a_large_image_is_kept_smaller(client, tmp_path):
    client.post("/gallery", files=upload(encoded(noise(2048, 512))))
    (copy,) = (tmp_path / "state" / "images").iterdir()
    assert Image.open(copy).size == (256, 1024)


@pytest.mark.parametrize("levels", [(), (4095.0,)], ids=["not told", "told"])
def test_a_gallery_that_tells_white_levels_learns_that_of_added_images(make_service, tmp_path, levels):
    service = make_service(tmp_path)
    for level in levels:
        service.gallery.note_white_level(level)
    with client_of(service) as client:
        assert client.post("/gallery", files=upload(encoded(noise()))).status_code == 201
    assert open_gallery(tmp_path / "index").white_levels == ((0.0, *levels) if levels else ())


def test_what_is_unknown_stays_unknown(client):
    id = client.post("/gallery", files=upload(encoded(noise()))).json()["id"]
    entry = client.get(f"/gallery/{id}").json()
    assert entry == {"id": id, "name": "query.jpg", "pid": None, "camid": None, "time": None}


def test_a_name_is_no_path(client, make_service, tmp_path):
    files = {"image": ("../../../etc/passwd", encoded(noise()), "image/png")}
    id = client.post("/gallery", files=files).json()["id"]
    assert client.get(f"/gallery/{id}").json()["name"] == "passwd"
    id = client.post("/gallery", files=files, data={"name": "/etc/passwd\n\x00"}).json()["id"]
    assert client.get(f"/gallery/{id}").json()["name"] == "/etc/passwd??"
    assert Image.open(io.BytesIO(client.get(f"/gallery/{id}/image").content)).size == (20, 40)


def test_added_images_survive_a_restart(make_service, make_index, extractor, tmp_path):
    service = make_service(tmp_path)
    with client_of(service) as client:
        id = client.post("/gallery", files=upload(encoded(noise())), data={"name": "kept"}).json()["id"]
        client.post("/search", data={"id": 1})
        assert client.post("/feedback", json={"query": "id:1", "hit": id, "verdict": "right"}).status_code == 200
    again = Service(open_gallery(tmp_path / "index", writable=True), extractor, Store(tmp_path / "state"))
    with client_of(again) as client:
        assert client.get(f"/gallery/{id}").json()["name"] == "kept"
        assert client.get(f"/gallery/{id}/image").status_code == 200
        assert client.get("/overview").json()["verdicts"] == 1


def test_a_deleted_person_leaves_no_picture_wherever_the_state_was_moved(make_service, extractor, tmp_path):
    with client_of(make_service(tmp_path / "a")) as client:
        id = client.post("/gallery", files=upload(encoded(noise()))).json()["id"]
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "link").symlink_to(tmp_path / "b")
    again = Service(open_gallery(tmp_path / "link/index", writable=True), extractor, Store(tmp_path / "link/state"))
    with client_of(again) as client:
        assert client.get(f"/gallery/{id}/image").status_code == 200
        assert client.delete(f"/gallery/{id}").status_code == 200
    assert not list((tmp_path / "b/state/images").iterdir())


def test_pictures_without_entries_are_removed_at_the_start(make_service, extractor, tmp_path, monkeypatch):
    service = make_service(tmp_path)
    with client_of(service) as client:
        kept = client.post("/gallery", files=upload(encoded(noise()))).json()["id"]
        gone = client.post("/gallery", files=upload(encoded(noise(seed=1)))).json()["id"]
        monkeypatch.setattr(service.store, "remove_copy", lambda path: None)  # as if killed before it
        client.delete(f"/gallery/{gone}")
        service.store.save_copy(encoded(noise(seed=2)), "never added")
    images = tmp_path / "state" / "images"
    other = images / f"{'0' * 32}.png"
    other.write_bytes(b"of nobody knows whom")
    assert len(list(images.iterdir())) == 4
    # A service with another gallery leaves them alone.
    gallery = create_gallery(tmp_path / "other", extractor.feature_dim, extractor.checksum)
    with client_of(Service(gallery, extractor, Store(tmp_path / "state"))):
        assert len(list(images.iterdir())) == 4
    again = Service(open_gallery(tmp_path / "index", writable=True), extractor, Store(tmp_path / "state"))
    with client_of(again) as client:
        assert len(list(images.iterdir())) == 2
        assert client.get(f"/gallery/{kept}/image").status_code == 200
        assert other.exists()


def test_many_at_once(client):
    pictures = [encoded(noise(seed=seed)) for seed in range(5)]
    files = [("images", (f"{n}.png", picture, "image/png")) for n, picture in enumerate(pictures)]
    answer = client.post("/gallery/batch", files=files, data={"pid": 9, "camid": 2})
    assert answer.status_code == 201
    added = answer.json()["ids"]
    assert [client.get(f"/gallery/{id}").json()["name"] for id in added] == [f"{n}.png" for n in range(5)]
    for id, picture in zip(added, pictures):
        hit = client.post("/search", files=upload(picture), data={"k": 1}).json()["hits"][0]
        assert (hit["id"], hit["pid"], hit["camid"], hit["time"]) == (id, 9, 2, None)
    bad = [*files, ("images", ("half.png", pictures[0][:100], "image/png"))]
    assert error_of(client.post("/gallery/batch", files=bad), 422).startswith("half.png: the image is damaged")
    assert client.get("/healthz").json()["entries"] == 36
    error_of(client.post("/gallery/batch", data={"pid": 9}), 422)


def test_more_at_once_than_the_queue_holds(make_service, tmp_path):
    with client_of(make_service(tmp_path, limits=Limits(queue=2))) as client:
        files = [("images", (f"{n}.png", encoded(noise(seed=n)), "image/png")) for n in range(5)]
        answer = client.post("/gallery/batch", files=files)
        assert answer.status_code == 201, answer.text
        assert len(answer.json()["ids"]) == 5


def test_what_is_known_of_an_entry_is_corrected(client):
    before = client.get("/gallery/3").json()
    after = client.patch("/gallery/3", json={"pid": 77, "time": None}).json()
    assert after == {**before, "pid": 77, "time": None} == client.get("/gallery/3").json()
    assert client.patch("/gallery/3", json={"camid": 41}).json()["pid"] == 77
    assert 41 in client.get("/overview").json()["cameras"]
    assert [hit["id"] for hit in client.post("/search", data={"id": 0, "cameras": 41}).json()["hits"]] == [3]
    assert "nothing to change" in error_of(client.patch("/gallery/3", json={}), 422)
    assert "no entry 999" in error_of(client.patch("/gallery/999", json={"pid": 1}), 404)
    error_of(client.patch("/gallery/3", json={"pid": "x"}), 422)
    for time in (1.7e12, -1e12):  # beyond the years 1 to 9999
        assert "time is" in error_of(client.patch("/gallery/3", json={"time": time}), 422)


def test_an_entry_that_another_process_deletes_while_it_is_corrected(make_service, tmp_path, monkeypatch):
    service = make_service(tmp_path)
    relabel = service.gallery.relabel

    def late(ids, **labels):
        service.gallery.delete(ids)
        relabel(ids, **labels)

    monkeypatch.setattr(service.gallery, "relabel", late)
    with client_of(service) as client:
        assert error_of(client.patch("/gallery/3", json={"pid": 1}), 404) == "no entry 3 in the gallery"


def test_persons_and_cameras_beyond_what_every_json_parser_reads(make_service, tmp_path):
    service, large = make_service(tmp_path), 2**53 + 1
    with client_of(service) as client:
        for field in ("pid", "camid"):
            assert f"{field} is '{large}'" in error_of(client.patch("/gallery/3", json={field: large}), 422)
        service.gallery.relabel([3], pids=[2**62 + 1], camids=[large])
        assert client.get("/gallery/3").json()["pid"] == 2**62 + 1
        found = [client.post("/search", data={"id": 0, "k": 100, name: large}) for name in ("cameras", "not_cameras")]
        ids = [{hit["id"] for hit in answer.json()["hits"]} for answer in found]
        assert ids[0] == {3}
        assert 3 not in ids[1]


def test_all_of_a_gallery_page_by_page(client):
    client.delete("/gallery/4")
    seen, after = [], -1
    while after is not None:
        page = client.get("/gallery", params={"limit": 7, "after": after}).json()
        seen += [entry["id"] for entry in page["entries"]]
        assert page["next"] is None or page["next"] > after
        after = page["next"]
    assert seen == [id for id in range(31) if id != 4]
    assert page["total"] == 30


def test_entries_are_listed_counted_and_deleted_by_filter(client, tiny_set, tmp_path, query):
    pids, cameras = (np.array([getattr(record, name) for record in tiny_set.gallery]) for name in ("pid", "camid"))
    id = client.post("/gallery", files=upload(query), data={"pid": int(pids[3]), "time": FIRST_TIME + 600}).json()["id"]
    of_person = [*np.flatnonzero(pids == pids[3]).tolist(), id]

    def listed(**filters):
        seen, after = [], -1
        while after is not None:
            page = client.get("/gallery", params={"limit": 2, "after": after, **filters}).json()
            seen += [entry["id"] for entry in page["entries"]]
            assert page["next"] is None or page["next"] > after
            after = page["next"]
        assert page["total"] == len(seen)
        return seen

    assert listed(pids=[int(pids[3])]) == of_person
    assert client.get("/gallery", params={"pids": [int(pids[3])]}).json()["total"] == len(of_person)
    assert listed(cameras=[1]) == np.flatnonzero(cameras == 1).tolist() != []
    assert listed(not_cameras=[1])[:-1] == np.flatnonzero(cameras != 1).tolist()
    assert listed(taken_after=FIRST_TIME + 60, taken_before=FIRST_TIME + 180) == [1, 2]

    refused = (
        ({}, "no filter given"),
        ({"taken_after": 5, "taken_before": 5}, "expected taken_after < taken_before"),
        ({"pids": 1, "before": 5}, "before is no filter"),
    )
    for wrong, named in refused:
        assert named in error_of(client.delete("/gallery", params=wrong), 422)
    for wrong, named in (*refused[1:], ({"limit": 5, "after": 1, "came\nra": 1}, "came?ra is no filter")):
        assert named in error_of(client.get("/gallery", params=wrong), 422)
    assert client.get("/gallery").json()["total"] == 32
    assert len(list((tmp_path / "state" / "images").iterdir())) == 1
    assert client.delete("/gallery", params={"pids": [int(pids[3])]}).json() == {"deleted": len(of_person)}
    assert not list((tmp_path / "state" / "images").iterdir())
    assert client.delete("/gallery", params={"taken_before": FIRST_TIME - 1}).json() == {"deleted": 0}
    assert listed() == [number for number in range(31) if number not in of_person]


def test_the_space_of_deleted_entries_is_given_back(client, query):
    before = ids(client.post("/search", files=upload(query)))
    client.delete(f"/gallery/{before[0]}")
    assert client.post("/compact").json() == {"entries": 30}
    assert ids(client.post("/search", files=upload(query), data={"k": 19})) == before[1:]


def test_a_service_that_is_read_only(make_index, extractor, tiny_set, tmp_path, query):
    make_index(tmp_path / "index").close()
    store = Store(tmp_path / "state", read_only=True)
    with client_of(
        Service(open_gallery(tmp_path / "index"), extractor, store), access=Access(read_only=True)
    ) as client:
        assert len(ids(client.post("/search", files=upload(query)))) == 20
        assert client.get("/overview").json()["read_only"] is True
        for answer in (
            client.post("/gallery", files=upload(query)),
            client.delete("/gallery/1"),
            client.delete("/gallery?pids=1"),
            client.patch("/gallery/1", json={"pid": 1}),
            client.post("/feedback", json={"query": "id:1", "hit": 2, "verdict": "right"}),
            client.post("/compact"),
        ):
            assert error_of(answer, 403) == "this service is read-only"
    assert not (tmp_path / "state").exists()


def test_a_token_or_its_cookie_gives_access(make_service, tmp_path):
    access = Access("0123456789abcdef")
    with client_of(make_service(tmp_path), access=access) as client:
        assert client.get("/").status_code == 200
        error_of(client.get("/healthz"), 401)
        header = {"Authorization": f"Bearer {access.token}"}
        assert client.get("/healthz", headers=header).status_code == 200
        error_of(client.post("/login", json={"token": "wrong"}), 401)
        answer = client.post("/login", json={"token": access.token})
        assert answer.status_code == 204
        assert "Secure" not in answer.headers["set-cookie"]
        assert client.get("/healthz").status_code == 200
        over_tls = {"Origin": f"https://{client.base_url.netloc.decode()}"}
        answer = client.post("/login", json={"token": access.token}, headers=over_tls)
        assert "Secure" in answer.headers["set-cookie"]


@pytest.mark.parametrize("format", ["GIF", "TIFF"])
def test_pictures_of_a_gallery_of_other_formats(extractor, gallery_features, tmp_path, format):
    picture = Image.linear_gradient("L").resize((20, 40))
    if format == "TIFF":
        picture = picture.convert("RGB")
    picture.save(tmp_path / f"a.{format}", format, save_all=True, append_images=[picture.rotate(180)])
    gallery = create_gallery(tmp_path / "index", extractor.feature_dim, extractor.checksum)
    gallery.add(gallery_features[:1], paths=[str(tmp_path / f"a.{format}")])
    with client_of(Service(gallery, extractor, Store(tmp_path / "state"), image_roots=[tmp_path])) as client:
        shown = np.asarray(Image.open(io.BytesIO(client.get("/gallery/0/image").content))).astype(int)
        assert np.abs(shown - decode_image(str(tmp_path / f"a.{format}"))).mean() < 5  # of the first frame
        error_of(client.post("/embed", files=upload((tmp_path / f"a.{format}").read_bytes())), 415)


def test_large_images_delay_only_large_images(make_service, tmp_path, query, monkeypatch):
    large = encoded(np.zeros((2000, 2000, 3), np.uint8))
    gate, decode = threading.Event(), pictures_module.decode_upload

    def slow(data, *arguments):
        if data == large:
            gate.wait(20)
        return decode(data, *arguments)

    monkeypatch.setattr(pictures_module, "decode_upload", slow)
    service = make_service(tmp_path, limits=Limits(queue=40))
    with on_socket(service) as address:
        answers = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(httpx.post(f"{address}/embed", files=upload(large), timeout=30))
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: len(answers) == 2)  # 16 places each, of 40
        assert {answer.status_code for answer in answers} == {503}
        assert httpx.post(f"{address}/embed", files=upload(query), timeout=30).status_code == 200
        gate.set()
        for thread in threads:
            thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503]


def test_no_folder_for_temporary_files_is_needed(client, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert client.post("/embed", files=upload(encoded(noise(1000, 600), compress_level=0))).status_code == 200


def test_deleting_leaves_files_that_are_not_ours(client, tiny_set):
    client.delete("/gallery/3")
    assert decode_image(tiny_set.gallery[3].path).size


def test_images_come_from_allowed_folders_only(extractor, gallery_features, tiny_set, tmp_path):
    allowed, outside = tmp_path / "allowed", tmp_path / "outside"
    allowed.mkdir()
    outside.mkdir()
    for folder in (allowed, outside):
        Image.fromarray(noise()).save(folder / "a.png")
    (allowed / "link.png").symlink_to(outside / "a.png")
    (allowed / "text.png").write_text("root:x:0:0")
    (allowed / "folder").mkdir()
    paths = [
        allowed / "a.png",
        outside / "a.png",
        allowed / ".." / "outside" / "a.png",
        allowed / "link.png",
        allowed / "text.png",
        allowed / "folder",
        allowed / "missing.png",
        "",
        "/dev/zero",
        str(allowed / "a\0.png"),
    ]
    gallery = create_gallery(tmp_path / "index", extractor.feature_dim, extractor.checksum)
    gallery.add(gallery_features[: len(paths)], paths=list(map(str, paths)))
    service = Service(gallery, extractor, Store(tmp_path / "state"), image_roots=[allowed])
    with client_of(service) as client:
        statuses = [client.get(f"/gallery/{id}/image").status_code for id in range(len(paths))]
        assert statuses == [200] + [404] * (len(paths) - 1)
        assert error_of(client.get("/gallery/1/image"), 404) == "no image of entry 1 can be shown"


@pytest.mark.parametrize(
    "path",
    [
        "/page/..%2f..%2fapp.py",
        "/page/../app.py",
        "/page/%2e%2e/%2e%2e/etc/passwd",
        "/page//etc/passwd",
        "/gallery/..%2f0/image",
        "/gallery/0%00/image",
        "/examples/-1/image",
        "//etc/passwd",
        "/static/x",
        "/redoc",
    ],
)
def test_no_path_leads_to_other_files(shared, path):
    # Sent unchanged: httpx would normalise the path.
    request = httpx.Request("GET", shared.base_url)
    request.url = request.url.copy_with(raw_path=path.encode())
    assert shared.send(request).status_code in (404, 422)


# ----------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("kind", ["soft", "regions", "both"])
def test_attention_is_drawn_over_the_whole_image(shared, query, kind):
    for response in (
        shared.get("/gallery/2/attention", params={"kind": kind, "level": 2}),
        shared.post("/attention", files=upload(query), params={"kind": kind, "level": 2}),
    ):
        assert response.headers["content-type"] == "image/png"
        assert Image.open(io.BytesIO(response.content)).size == (3 * 32, 3 * 48)


def test_attention_is_that_of_the_network(shared, tiny_run, tiny_set):
    from han_tf.data.reading import resize
    from han_tf.runs.folder import load_run
    from han_tf.viz.attention import attend, heat_overlay, relative_attention

    image = resize(decode_image(tiny_set.gallery[3].path), (48, 32))
    # Level 2: after so little training, the soft map of level 3 is nearly constant, and rounding shows.
    _, middle, last = attend(load_run(tiny_run).model, image[None])
    enlarged = np.asarray(Image.fromarray(image).resize((96, 144), Image.Resampling.BICUBIC))
    expected = heat_overlay(enlarged, relative_attention(middle.soft[0]))
    response = shared.get("/gallery/3/attention", params={"kind": "soft", "level": 2})
    shown = np.asarray(Image.open(io.BytesIO(response.content)))
    assert np.abs(shown.astype(int) - expected).max() <= 4  # of 255; without oneDNN 3: other sums in float32
    regions = shared.get("/gallery/3/attention", params={"kind": "regions", "level": 3}).content
    shown = np.asarray(Image.open(io.BytesIO(regions))).astype(int)
    changed = np.argwhere((shown != enlarged).any(-1))
    boxes = np.clip(3 * last.boxes[0], 0, [96, 144, 96, 144])
    assert abs(changed[:, 0].min() - boxes[:, 1].min()) <= 1
    assert abs(changed[:, 1].max() + 1 - boxes[:, 2].max()) <= 1


def test_attention_that_cannot_be_drawn_is_refused(shared, make_service, tmp_path, query):
    assert "level is '4'" in error_of(shared.get("/gallery/0/attention?level=4"), 422)
    assert "kind" in error_of(shared.get("/gallery/0/attention?kind=x"), 422)
    with client_of(make_service(tmp_path, attention=None)) as client:
        assert "no attention" in error_of(client.get("/gallery/0/attention"), 404)
        assert "no attention" in error_of(client.post("/attention", files=upload(query)), 404)
        assert client.get("/overview").json()["attention"] == []


# ------------------------------------------------------------------------------------------------------ feedback


def test_feedback_comes_back_with_the_search_and_as_csv(client, query):
    answer = client.post("/search", files=upload(query), data={"k": 2}).json()
    first, second = (hit["id"] for hit in answer["hits"])
    for hit, verdict in ((first, "wrong"), (first, "right"), (second, "wrong")):
        said = {"query": answer["query"], "hit": hit, "verdict": verdict, "distance": 0.5}
        assert client.post("/feedback", json=said).json()["verdict"] == verdict
    verdicts = [hit["verdict"] for hit in client.post("/search", files=upload(query), data={"k": 2}).json()["hits"]]
    assert verdicts == ["right", "wrong"]
    other = client.post("/search", data={"id": first, "k": 5}).json()["hits"]
    assert {hit["verdict"] for hit in other} == {None}
    export = client.get("/feedback.csv")
    assert export.headers["content-type"] == "text/csv; charset=utf-8"
    assert "attachment" in export.headers["content-disposition"]
    lines = export.text.splitlines()
    assert lines[0] == "time,query,hit,verdict,distance,image,gallery"
    assert len(lines) == 3
    client.post("/feedback", json={"query": answer["query"], "hit": first, "verdict": None})
    assert len(client.get("/feedback.csv").text.splitlines()) == 2


def test_feedback_is_about_searches_that_were_made(make_service, extractor, tmp_path):
    with client_of(make_service(tmp_path, limits=Limits(verdicts=2))) as client:
        said = {"query": "id:1", "hit": 2, "verdict": "right"}
        assert "id:1 was not searched for" in error_of(client.post("/feedback", json=said), 404)
        made_up = {**said, "query": "sha256:" + "a" * 64}
        error_of(client.post("/feedback", json=made_up), 404)
        client.post("/search", data={"id": 1})
        for hit in (2, 3):
            assert client.post("/feedback", json={**said, "hit": hit}).status_code == 200
        assert "2 verdicts are kept" in error_of(client.post("/feedback", json={**said, "hit": 4}), 409)
    again = Service(open_gallery(tmp_path / "index", writable=True), extractor, Store(tmp_path / "state"))
    with client_of(again) as client:  # a verdict can be removed after a restart
        assert client.post("/feedback", json={**said, "verdict": None}).status_code == 200


@pytest.mark.parametrize(
    "said",
    [
        {"query": "x", "hit": 1, "verdict": "right"},
        {"query": "id:1\n", "hit": 1, "verdict": "right"},
        {"query": "id:1", "hit": -1, "verdict": "right"},
        {"query": "id:1", "hit": 1, "verdict": "maybe"},
        {"query": "id:1", "hit": 1},
        {"query": "id:1", "hit": 1, "verdict": "right", "distance": -1},
        [],
        None,
    ],
)
def test_feedback_that_is_not_valid(shared, said):
    error_of(shared.post("/feedback", json=said), 422)


# ----------------------------------------------------------------------------------------------------- operation


def test_health_and_metrics(client, query, extractor):
    assert client.get("/healthz").json() == {"status": "ok", "entries": 31, "model": extractor.checksum}
    client.post("/search", files=upload(query))
    client.get("/gallery/12345")
    client.get("/no/such/place")
    client.get("/healthz", headers={"Host": "evil.example"})
    metrics = client.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    lines = metrics.text.splitlines()
    assert 'han_tf_requests_total{method="POST",route="/search",status="200"} 1.0' in lines
    assert 'han_tf_requests_total{method="GET",route="/gallery/{id}",status="404"} 1.0' in lines
    assert 'han_tf_requests_total{method="GET",route="none",status="404"} 1.0' in lines
    assert 'han_tf_refused_total{status="421"} 1.0' in lines
    assert "han_tf_gallery_entries 31.0" in lines
    assert 'han_tf_batch_size_count{network="features"} 1.0' in lines
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)


def test_metrics_of_a_slow_gallery_do_not_delay_other_requests(make_service, tmp_path, monkeypatch):
    service, asked, gate = make_service(tmp_path), threading.Event(), threading.Event()

    def count(_):
        asked.set()
        gate.wait(20)
        return 17

    with on_socket(service) as address:
        monkeypatch.setattr(type(service.gallery), "__len__", count)
        answers = []
        thread = threading.Thread(target=lambda: answers.append(httpx.get(f"{address}/metrics", timeout=30)))
        thread.start()
        assert asked.wait(20)
        assert httpx.get(f"{address}/gallery/0", timeout=5).status_code == 200
        gate.set()
        thread.join()
    assert "han_tf_gallery_entries 17.0" in answers[0].text.splitlines()


def test_what_is_not_there(shared):
    error_of(shared.get("/nothing"), 404)
    error_of(shared.put("/search"), 405)
    error_of(shared.post("/search", content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=y"}), 400)
    error_of(shared.post("/feedback", content=b"{", headers={"Content-Type": "application/json"}), 422)
    assert "another site" in error_of(
        shared.post("/search", data={"id": 0}, headers={"Origin": "http://x.example"}), 403
    )


def test_the_page_and_the_description_need_nobody_else(shared):
    for path in ("/", "/docs"):
        page = shared.get(path)
        assert page.headers["content-type"].startswith("text/html")
        assert "script-src 'self'" in page.headers["content-security-policy"]
        text = page.text
        assert not re.search(r"https?://|<style|style=|\son\w+=|<script(?! src)", text)
        for file in re.findall(r'(?:src|href)="(/page/[^"]+)"', text):
            answer = shared.get(file)
            assert answer.status_code == 200
            again = shared.get(file, headers={"If-None-Match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
    description = shared.get("/openapi.json").json()
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (path, method)
            for status, response in operation["responses"].items():
                if status >= "400":
                    assert response["content"]["application/json"]["schema"]["$ref"].endswith("/Error")
    assert "HTTPValidationError" not in json.dumps(description["paths"])


def test_a_full_queue_refuses_further_images(make_service, tmp_path, query):
    service = make_service(tmp_path, limits=Limits(queue=2, batch=1, batch_wait_ms=0))
    begun, gate, compute = threading.Event(), threading.Event(), service._embed._compute

    def slow(images):
        begun.set()
        gate.wait(20)
        return compute(images)

    with on_socket(service) as address:
        service._embed._compute = slow
        answers = []

        def ask():
            answers.append(httpx.post(f"{address}/embed", files=upload(query), timeout=30))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for waiting, thread in enumerate(threads):  # the first is computed, the others wait
            thread.start()
            wait_for(lambda waiting=waiting: begun.is_set() and len(service._embed) == waiting)
        refused = httpx.post(f"{address}/embed", files=upload(query), timeout=30)
        assert "2 images are waiting" in error_of(refused, 503)
        assert refused.headers["retry-after"] == "1"
        gate.set()
        for thread in threads:
            thread.join()
        assert [answer.status_code for answer in answers] == [200] * 3


def test_a_network_that_takes_too_long(make_service, tmp_path, query):
    service = make_service(tmp_path, limits=Limits(request_seconds=0.3))
    gate = threading.Event()
    with client_of(service) as client:
        service._embed._compute = lambda images: gate.wait(20) and [np.zeros(1024, np.float32)] * len(images)
        assert "0.3 seconds" in error_of(client.post("/embed", files=upload(query)), 503)
        gate.set()


def test_a_gallery_out_of_reach(make_service, tmp_path, query, capsys, monkeypatch):
    service = make_service(tmp_path)
    with client_of(service) as client:

        def gone(*_, **__):
            raise UserError("/secret/place: Milvus does not answer")

        for name in ("search", "some", "entries", "features", "add", "delete"):
            monkeypatch.setattr(service.gallery, name, gone)
        for response in (
            client.post("/search", files=upload(query)),
            client.post("/search", data={"id": 0}),
            client.get("/gallery"),
            client.get("/gallery/0"),
            client.get("/gallery/0/image"),
            client.get("/healthz"),
            client.get("/overview"),
            client.post("/gallery", files=upload(query)),
            client.delete("/gallery/0"),
        ):
            error = error_of(response, 503)
            assert "gallery cannot be" in error
            assert "secret" not in error
            assert response.headers["retry-after"]
        assert "han_tf_gallery_entries NaN" in client.get("/metrics").text
        assert not list((tmp_path / "state" / "images").iterdir())
        assert service.store.copies_of_gallery() == []
    assert "/secret/place: Milvus does not answer" in capsys.readouterr().err


def test_a_bug_is_said_without_a_traceback(make_service, tmp_path, query):
    service = make_service(tmp_path)

    def broken(_):
        raise ZeroDivisionError("/secret/place")

    with client_of(service) as client:
        service._embed._compute = broken
        assert error_of(client.post("/embed", files=upload(query)), 500) == "a fault of the service; its log says more"
        assert client.get("/healthz").status_code == 200


def test_fewer_hits_than_usual(make_service, tmp_path, query):
    with client_of(make_service(tmp_path, limits=Limits(max_k=3))) as client:
        assert len(ids(client.post("/search", files=upload(query)))) == 3
        assert "k is '4'" in error_of(client.post("/search", data={"id": 0, "k": 4}), 422)
        assert len(client.get("/gallery?limit=31").json()["entries"]) == 31


def test_examples(make_service, tmp_path, tiny_set):
    examples = [Example(tiny_set.query[0].path, "a person"), Example(str(tmp_path / "missing.png"), "nobody")]
    with client_of(make_service(tmp_path, examples=examples)) as client:
        assert client.get("/examples").json() == [
            {"number": 0, "title": "a person"},
            {"number": 1, "title": "nobody"},
        ]
        shown = Image.open(io.BytesIO(client.get("/examples/0/image").content))
        np.testing.assert_array_equal(np.asarray(shown), decode_image(tiny_set.query[0].path))
        error_of(client.get("/examples/1/image"), 404)
        error_of(client.get("/examples/2/image"), 404)


def test_another_network_is_refused(make_index, make_service, extractor, attention_model, tmp_path):
    gallery = create_gallery(tmp_path / "other", extractor.feature_dim, "f" * 64)
    with pytest.raises(UserError, match=r"ffffffffffff….*expected the same model"):
        Service(gallery, extractor, Store(tmp_path / "state"))
    gallery = create_gallery(tmp_path / "shorter", 3, extractor.checksum)
    with pytest.raises(UserError, match="dimension 3, expected 1024"):
        Service(gallery, extractor, Store(tmp_path / "state"))

    class Other:
        run_dir = "runs/other"
        checksum = "e" * 64

    with pytest.raises(UserError, match="runs/other: the network eeeeeeeeeeee…"):
        Service(make_index(tmp_path / "index"), extractor, Store(tmp_path / "state"), attention=Other())


def test_an_empty_gallery(extractor, tmp_path, query):
    gallery = create_gallery(tmp_path / "index", extractor.feature_dim, extractor.checksum)
    gallery.set_threshold(0.5)
    with client_of(Service(gallery, extractor, Store(tmp_path / "state"))) as client:
        answer = client.post("/search", files=upload(query)).json()
        assert (answer["hits"], answer["known"]) == ([], False)
        assert client.get("/gallery").json() == {"entries": [], "next": None, "total": 0}
        assert client.get("/overview").json()["cameras"] == []
