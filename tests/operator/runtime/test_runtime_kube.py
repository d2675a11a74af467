"""The HTTP client: addresses, errors, credentials."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client.configuration import Configuration

from wrpo_operator.runtime.kube import HttpKube, KubeError, NoConnectionError, Page, list_all, load_configuration
from wrpo_operator.runtime.resources import EXPERIMENTS, JOBS, PODS, TOKEN_REVIEWS


class Server:
    """Answers from a list and remembers what it was asked."""

    def __init__(self, *answers: web.Response) -> None:
        self.answers = list(answers)
        self.requests: list[tuple[str, str, dict[str, str], Any, str, str]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.text()
        self.requests.append(
            (
                request.method,
                request.path,
                dict(request.query),
                json.loads(body) if body else None,
                request.content_type,
                request.headers.get("Authorization", ""),
            )
        )
        return self.answers.pop(0)


def talk(server: Server, work: Callable[[HttpKube], Awaitable[Any]], tmp_path: Path, token: str = "first") -> Any:  # noqa: S107
    async def main() -> Any:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", server.handle)
        async with TestServer(app) as running:
            (tmp_path / "token").write_text(token, encoding="ascii")
            config = {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{running.port}"}}],
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "users": [{"name": "u", "user": {"tokenFile": str(tmp_path / "token")}}],
                "current-context": "c",
            }
            (tmp_path / "config").write_text(json.dumps(config), encoding="ascii")
            client = await HttpKube.connect(str(tmp_path / "config"))
            try:
                return await work(client)
            finally:
                await client.close()

    return asyncio.run(main())


def answer(body: Any, status: int = 200, **headers: str) -> web.Response:
    return web.json_response(body, status=status, headers=headers)


def test_addresses_of_collections_objects_and_subresources() -> None:
    assert PODS.path("ns", "p") == "/api/v1/namespaces/ns/pods/p"
    assert JOBS.path() == "/apis/batch/v1/jobs"
    assert EXPERIMENTS.path("ns", "e", "status") == "/apis/wrpo.ai/v1alpha1/namespaces/ns/wrpoexperiments/e/status"
    assert TOKEN_REVIEWS.path("ns") == "/apis/authentication.k8s.io/v1/tokenreviews"


def test_apply_is_a_forced_server_side_apply_of_our_field_manager(tmp_path: Path) -> None:
    server = Server(answer({"ok": True}))
    body = {"metadata": {"name": "j", "namespace": "ns"}}
    assert talk(server, lambda client: client.apply(JOBS, body), tmp_path) == {"ok": True}
    assert server.requests == [
        (
            "PATCH",
            "/apis/batch/v1/namespaces/ns/jobs/j",
            {"fieldManager": "wrpo-operator", "force": "true"},
            body,
            "application/apply-patch+yaml",
            "Bearer first",
        )
    ]


def test_a_long_list_is_read_page_by_page_and_items_know_their_kind(tmp_path: Path) -> None:
    server = Server(
        answer({"metadata": {"continue": "more", "resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}}]}),
        answer({"metadata": {"resourceVersion": "7"}, "items": [{"metadata": {"name": "b"}}]}),
    )
    items = talk(server, lambda client: list_all(client, JOBS, "ns", label_selector="a=b"), tmp_path)
    assert [(item["metadata"]["name"], item["kind"], item["apiVersion"]) for item in items] == [
        ("a", "Job", "batch/v1"),
        ("b", "Job", "batch/v1"),
    ]
    assert [request[2].get("continue") for request in server.requests] == [None, "more"]


def test_pages_come_one_by_one_with_the_lists_version(tmp_path: Path) -> None:
    server = Server(
        answer({"metadata": {"continue": "more", "resourceVersion": "7"}, "items": [{"metadata": {"name": "a"}}]}),
        answer({"metadata": {"resourceVersion": "7"}, "items": []}),
    )
    requests: list[int] = []

    async def read(client: HttpKube) -> list[Page]:
        pages = []
        async for page in client.pages(JOBS, "ns"):
            requests.append(len(server.requests))
            pages.append(page)
        return pages

    kind = {"apiVersion": "batch/v1", "kind": "Job"}
    assert talk(server, read, tmp_path) == [Page([{"metadata": {"name": "a"}, **kind}], "7", "more"), Page([], "7")]
    assert requests == [1, 2]


def test_a_page_counts_what_is_left_out_of_it(tmp_path: Path) -> None:
    deep = '{"a":' * 300 + "1" + "}" * 300
    text = f'{{"metadata":{{"continue":"x"}},"items":[{{"metadata":{{"name":"a"}},"spec":{deep}}},7,{{}}]}}'
    server = Server(
        web.Response(text=text, content_type="application/json"), answer({"items": [{"metadata": {"name": "b"}}]})
    )

    async def read(client: HttpKube) -> list[Page]:
        return [page async for page in client.pages(JOBS, "ns")]

    pages = talk(server, read, tmp_path)
    assert [([item["metadata"]["name"] for item in page.items], page.num_cut) for page in pages] == [
        (["a"], 3),
        (["b"], 0),
    ]


def test_a_refusal_carries_the_servers_words_code_and_pause(tmp_path: Path) -> None:
    status = {"kind": "Status", "message": "slow down", "reason": "TooManyRequests", "code": 429}
    server = Server(answer(status, 429, **{"Retry-After": "3"}))
    with pytest.raises(KubeError) as caught:
        talk(server, lambda client: client.get(JOBS, "j", "ns"), tmp_path)
    error = caught.value
    assert (error.code, error.reason, error.retry_after_s) == (429, "TooManyRequests", 3.0)
    assert error.message == "GET /apis/batch/v1/namespaces/ns/jobs/j: slow down"


def test_rotated_credentials_are_read_anew_once(tmp_path: Path) -> None:
    server = Server(answer({}, 401), answer({"ok": True}))

    async def rotate(client: HttpKube) -> Any:
        (tmp_path / "token").write_text("second", encoding="ascii")
        return await client.get(JOBS, "j", "ns")

    assert talk(server, rotate, tmp_path) == {"ok": True}
    assert [request[5] for request in server.requests] == ["Bearer first", "Bearer second"]


def test_credentials_that_stay_wrong_are_an_error(tmp_path: Path) -> None:
    server = Server(answer({"message": "Unauthorized"}, 401), answer({"message": "Unauthorized"}, 401))
    with pytest.raises(KubeError, match="Unauthorized"):
        talk(server, lambda client: client.get(JOBS, "j", "ns"), tmp_path)


def test_whether_a_resource_is_served(tmp_path: Path) -> None:
    server = Server(
        answer({"resources": [{"name": "jobs"}]}), answer({"resources": [{"name": "cronjobs"}]}), answer({}, 404)
    )

    async def ask(client: HttpKube) -> list[bool]:
        return [await client.served(JOBS) for _ in range(3)]

    assert talk(server, ask, tmp_path) == [True, False, False]


def test_a_delete_names_the_uid_so_that_a_successor_is_spared(tmp_path: Path) -> None:
    server = Server(answer({}))
    talk(server, lambda client: client.delete(JOBS, "j", "ns", uid="u-1"), tmp_path)
    assert server.requests[0][3] == {
        "kind": "DeleteOptions",
        "apiVersion": "v1",
        "propagationPolicy": "Background",
        "preconditions": {"uid": "u-1"},
    }


def test_kopf_logs_in_with_the_same_credentials(tmp_path: Path) -> None:
    server = Server()
    login = talk(server, lambda client: client.kopf_login(), tmp_path)
    assert (login["scheme"], login["token"]) == ("Bearer", "first")
    assert login["server"].startswith("http://127.0.0.1:")


def test_missing_credentials_say_where_they_were_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NoConnectionError) as caught:
        asyncio.run(load_configuration())
    assert "~/.kube/config" in caught.value.message
    assert "Set KUBECONFIG or pass --kubeconfig" in caught.value.message


def test_text_beyond_the_basic_plane_is_applied_without_escapes_which_yaml_readers_refuse(tmp_path: Path) -> None:
    bodies: list[bytes] = []

    class Raw(Server):
        async def handle(self, request: web.Request) -> web.Response:
            bodies.append(await request.read())
            return await super().handle(request)

    body = {"metadata": {"name": "j", "namespace": "ns", "annotations": {"a": "\U0001f999 ü \u2028"}}}
    talk(Raw(answer({})), lambda client: client.apply(JOBS, body), tmp_path)
    assert b"\\u" not in bodies[0]
    assert json.loads(bodies[0]) == body


def test_an_answer_that_is_no_json_is_an_error_of_the_request(tmp_path: Path) -> None:
    server = Server(web.Response(text="<html>welcome</html>"))
    with pytest.raises(KubeError, match="namespaces/ns/jobs/j: the response is not JSON: ") as caught:
        talk(server, lambda client: client.get(JOBS, "j", "ns"), tmp_path)
    assert caught.value.unreachable


def test_requests_under_way_keep_their_session_when_credentials_are_read_again(tmp_path: Path) -> None:
    class Slow(Server):
        """Answers one request only after another was refused and repeated with new credentials."""

        def __init__(self) -> None:
            super().__init__()
            self.begun, self.repeated = asyncio.Event(), asyncio.Event()
            self.refused = 0

        async def handle(self, request: web.Request) -> web.Response:
            if request.path.endswith("/slow"):
                self.begun.set()
                await self.repeated.wait()
                await asyncio.sleep(0.05)
                return answer({"name": "slow"})
            if request.headers["Authorization"] == "Bearer first":
                self.refused += 1
                return answer({}, 401)
            self.repeated.set()
            return answer({"name": "quick"})

    server = Slow()

    async def both(client: HttpKube) -> list[Any]:
        slow = asyncio.create_task(client.get(JOBS, "slow", "ns"))
        await server.begun.wait()
        (tmp_path / "token").write_text("second", encoding="ascii")
        quick = [client.get(JOBS, f"quick-{number}", "ns") for number in range(5)]
        return list(await asyncio.gather(slow, *quick))

    assert talk(server, both, tmp_path) == [{"name": "slow"}, *[{"name": "quick"}] * 5]


def test_every_request_is_reported_by_verb_resource_status_and_time(tmp_path: Path) -> None:
    server = Server(
        answer({}),
        answer({"metadata": {"continue": "more"}, "items": []}),
        answer({"items": []}),
        answer({"message": "taken"}, 409),
        answer({}),
        answer({}),
        answer({}),
        answer({}),
        answer({"resources": []}),
    )
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "ns"}}
    reported: list[tuple[str, str, int]] = []

    def report(verb: str, resource: str, code: int, seconds: float) -> None:
        assert seconds > 0
        reported.append((verb, resource, code))

    async def work(client: HttpKube) -> None:
        client.on_request = report
        await client.get(JOBS, "j", "ns")
        await list_all(client, JOBS, "ns")
        with pytest.raises(KubeError, match="taken"):
            await client.create(JOBS, job)
        await client.replace(JOBS, job)
        await client.apply(JOBS, job)
        await client.merge_patch(EXPERIMENTS, "e", "ns", {}, subresource="status")
        await client.delete(JOBS, "j", "ns")
        await client.served(JOBS)

    talk(server, work, tmp_path)
    assert reported == [
        ("get", "jobs", 200),
        ("list", "jobs", 200),
        ("list", "jobs", 200),
        ("create", "jobs", 409),
        ("update", "jobs", 200),
        ("apply", "jobs", 200),
        ("patch", "wrpoexperiments/status", 200),
        ("delete", "jobs", 200),
        ("discover", "jobs", 200),
    ]


def test_a_request_without_a_response_is_reported_with_status_0() -> None:
    reported: list[tuple[str, str, int]] = []

    async def main() -> None:
        client = HttpKube(Configuration(host="http://127.0.0.1:1"))
        client.on_request = lambda verb, resource, code, _seconds: reported.append((verb, resource, code))
        with pytest.raises(KubeError):
            await client.get(JOBS, "j", "ns")
        await client.close()

    asyncio.run(main())
    assert reported == [("get", "jobs", 0)]
