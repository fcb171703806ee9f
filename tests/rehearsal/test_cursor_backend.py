"""Cursor's scripted backend on its wire, without its program, which ``tests/conformance`` plays."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from airflow_agent_provider.rehearsal.cursor_server import CursorServer
from airflow_agent_provider.rehearsal.protobuf import Field, Message, encode
from airflow_agent_provider.rehearsal.script import Script

pytestmark = pytest.mark.integration

PROMPT = "Do it.\n\nStep: s of workflow w, run 1\n"
RUN = "/agent.v1.AgentService/RunSSE"
APPEND = "/aiserver.v1.BidiService/BidiAppend"
KEY = {"Authorization": "Bearer key_1"}


class Program:
    """Speaks as Cursor's program does: one stream comes in, requests go out."""

    def __init__(self, server: CursorServer) -> None:
        self.http = httpx.Client(base_url=server.url, timeout=20)
        token = self.http.post("/auth/exchange_user_api_key", headers=KEY, json={}).json()
        self.http.headers["Authorization"] = f"Bearer {token['accessToken']}"
        self.id = str(uuid.uuid4())
        self.number = 0
        self.messages: list[Message] = []
        self.end: dict[str, Any] | None = None
        self.arrived = threading.Condition()

    def close(self) -> None:
        self.http.close()

    def say(self, message: list[Field], number: int | None = None) -> None:
        if number is None:
            number, self.number = self.number, self.number + 1
        fields: list[Field] = [(1, encode(message).hex()), (2, [(1, self.id)]), (3, number)]
        kind = {"Content-Type": "application/proto"}
        assert self.http.post(APPEND, content=encode(fields), headers=kind).status_code == 200

    def run(self, prompt: str = PROMPT, state: bytes = b"", model: str = "m") -> None:
        action: list[Field] = [(1, [(1, [(1, prompt)])])] if prompt else [(2, [])]
        self.say([(1, [(1, state), (2, action), (5, "agent-1"), (9, [(1, model)])])])
        threading.Thread(target=self._listen, daemon=True).start()

    def context(self, workspace: str = "/w") -> None:
        """Answer the question for the surroundings."""
        self.wait(lambda message: message.at(2).has(10))
        self.say([(2, [(1, 1), (10, [(1, [(1, [(4, [(2, workspace)])])])])])])
        self.say([(5, [(1, [(1, 1)])])])

    def wait(self, wanted: Callable[[Message], bool]) -> Message:
        with self.arrived:
            assert self.arrived.wait_for(lambda: any(map(wanted, self.messages)), 20)
            return next(filter(wanted, self.messages))

    def ended(self) -> dict[str, Any]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.end is not None, 20)
        assert self.end is not None
        return self.end

    def state(self) -> bytes:
        """Return the latest state that is to be kept."""
        return [message for message in self.messages if message.has(3)][-1].data(3)

    def _listen(self) -> None:
        content = encode([(1, self.id)])
        body = b"\0" + len(content).to_bytes(4, "big") + content
        end: dict[str, Any] = {"broken": True}
        try:
            with self.http.stream("POST", RUN, content=body) as answer:
                data = b""
                for piece in answer.iter_raw():
                    data += piece
                    while len(data) >= 5 and len(data) >= 5 + int.from_bytes(data[1:5], "big"):
                        size = 5 + int.from_bytes(data[1:5], "big")
                        frame, data = data[:size], data[size:]
                        if frame[0] == 2:
                            end = json.loads(frame[5:])
                        else:
                            self._take(Message(frame[5:]))
        except httpx.HTTPError as error:
            end = {"broken": str(error)}
        with self.arrived:
            self.end = end
            self.arrived.notify_all()

    def _take(self, message: Message) -> None:
        with self.arrived:
            self.messages.append(message)
            self.arrived.notify_all()


Start = Callable[..., Program]


@pytest.fixture
def start() -> Iterator[Start]:
    """Return what starts a stand-in with a script, and gives a program that asks it."""
    servers: list[CursorServer] = []
    programs: list[Program] = []

    def begin(*actions: Any, step: str = "s", again: bool = False) -> Program:
        if not again:
            steps = {"steps": {step: list(actions)}}
            servers.append(CursorServer(Script.model_validate(steps)).start())
        programs.append(Program(servers[-1]))
        programs[-1].server = servers[-1]  # type: ignore[attr-defined]
        return programs[-1]

    yield begin
    for program in programs:
        program.close()
    for server in servers:
        server.stop()


def is_state(message: Message) -> bool:
    return message.has(3)


def texts(program: Program) -> str:
    return "".join(message.at(1, 1).text(1) for message in program.messages)


def ran(call: Message, code: int = 0, aborted: bool = False) -> list[list[Field]]:
    number = call.at(2).number(1)
    output: list[Field] = [(2, [(1, number), (14, [(1, [(1, "out")])])])]
    ended: list[Field] = [(2, [(1, number), (14, [(3, [(1, code), (4, int(aborted))])])])]
    return [output, ended, [(5, [(1, [(1, number)])])]]


def test_it_acts_by_the_programs_tools_and_says_what_came_of_it(start: Start) -> None:
    program = start(
        {"write": {"path": "a/b.md", "content": "b\n"}}, {"run": "make"}, {"say": "x" * 100}
    )
    program.run()
    program.context()
    write = program.wait(lambda m: m.at(2).has(3))
    assert [write.at(2, 3).text(n) for n in (1, 2)] == ["/w/a/b.md", "b\n"]
    program.say([(2, [(1, 2), (3, [(1, [(1, "/w/a/b.md")])])])])
    program.say([(5, [(1, [(1, 2)])])])
    shell = program.wait(lambda m: m.at(2).has(14))
    assert [shell.at(2, 14).text(n) for n in (1, 2)] == ["make", "/w"]
    for message in ran(shell, 3):
        program.say(message)
    assert program.ended() == {}
    shown = [m.at(1) for m in program.messages if m.at(1).has(2) or m.at(1).has(3)]
    assert [update.only() for update in shown] == [2, 3, 2, 3]
    edited, executed = shown[1].at(3, 2, 12, 2), shown[3].at(3, 2, 1, 2)
    assert edited.at(1).text(7) == "b\n"
    assert (executed.at(2).number(3), executed.at(2).text(5)) == (3, "out")
    assert texts(program) == "x" * 100
    tokens = next(m for m in program.messages if m.at(1).has(14)).at(1, 14)
    assert tokens.number(1) > tokens.number(3) > 0
    assert tokens.number(2) > 0


def test_a_refused_write_is_told_and_the_script_goes_on(start: Start) -> None:
    program = start({"write": {"path": "a.md", "content": "b\n"}}, {"say": "Done."})
    program.run()
    program.context()
    program.wait(lambda m: m.at(2).has(3))
    program.say([(2, [(1, 2), (3, [(3, [(1, "/w/a.md"), (4, "read-only file system")])])])])
    program.say([(5, [(1, [(1, 2)])])])
    assert program.ended() == {}
    result = program.wait(lambda m: m.at(1).has(3)).at(1, 3, 2, 12, 2)
    assert result.at(7).text(2) == "read-only file system"
    assert texts(program) == "Done."


def test_messages_are_taken_in_the_order_of_their_numbers(start: Start) -> None:
    program = start({"run": "make"}, {"say": "Done."})
    program.run()
    program.context()
    shell = program.wait(lambda m: m.at(2).has(14))
    first = program.number
    for number, message in reversed(list(enumerate(ran(shell, 3), first))):
        program.say(message, number)
    assert program.ended() == {}
    result = program.wait(lambda m: m.at(1).has(3)).at(1, 3, 2, 1, 2)
    assert (result.at(2).number(3), result.at(2).text(5)) == (3, "out")


def test_a_program_at_work_says_so_and_is_waited_for(start: Start) -> None:
    program = start({"run": "make"}, {"say": "Done."})
    program.run()
    program.context()
    shell = program.wait(lambda m: m.at(2).has(14))
    program.say([(5, [(3, [(1, shell.at(2).number(1))])])])
    program.say([(7, [])])
    for message in ran(shell):
        program.say(message)
    assert program.ended() == {}
    assert texts(program) == "Done."


def test_the_state_tells_how_far_the_script_is(start: Start) -> None:
    program = start({"run": "one"}, {"run": "two"}, {"say": "First."}, {"say": "Second."})
    program.run()
    program.context()
    for message in ran(program.wait(lambda m: m.at(2).has(14))):
        program.say(message)
    program.wait(is_state)
    kept = program.state()
    # The program dies here, in the second command; another one shows what was kept. Where it
    # resumes by itself, it sends no prompt.
    second = start(again=True)
    second.run(prompt="", state=kept)
    second.context("/elsewhere")
    shell = second.wait(lambda m: m.at(2).has(14))
    assert [shell.at(2, 14).text(n) for n in (1, 2)] == ["two", "/elsewhere"]
    for message in ran(shell):
        second.say(message)
    assert second.ended() == {}
    assert texts(second) == "First."
    # Each further turn goes on, and the last words are said again.
    for expected in ("Second.", "Second."):
        kept, further = second.state(), start(again=True)
        further.run("Mend it.", state=kept)
        further.context()
        assert further.ended() == {}
        assert texts(further) == expected
        second = further


def test_a_command_that_was_broken_off_is_not_done(start: Start) -> None:
    program = start({"run": "one"}, {"say": "Done."})
    program.run()
    program.context()
    for message in ran(program.wait(lambda m: m.at(2).has(14)), aborted=True):
        program.say(message)
    assert "broken" in program.ended()
    assert not any(map(is_state, program.messages))


@pytest.mark.parametrize(
    ("fail", "code", "number"),
    [
        ({"status": 401}, "unauthenticated", 0),
        ({"status": 429, "retry_after": 7}, "resource_exhausted", 0),
        ({"status": 503, "message": "Down"}, "unavailable", 0),
        ({"status": 500}, "internal", 0),
        ({"status": 429, "code": "insufficient_quota"}, "resource_exhausted", 10),
        ({"how": "error", "code": "context_length_exceeded"}, "internal", 43),
        ({"status": 400, "code": "nothing of Cursor's"}, "invalid_argument", 0),
    ],
)
def test_each_failure(start: Start, fail: dict[str, Any], code: str, number: int) -> None:
    import base64

    program = start({"fail": {**fail, "times": 1}}, {"say": "After it."})
    program.run()
    program.context()
    end = program.ended()
    assert end["error"]["code"] == code
    assert fail.get("message", "") in end["error"]["message"]
    assert end.get("metadata") == ({"retry-after": ["7"]} if "retry_after" in fail else None)
    details = [base64.b64decode(d["value"] + "==") for d in end["error"].get("details", ())]
    assert [Message(detail).number(1) for detail in details] == ([number] if number else [])
    again = start(again=True)
    again.run()
    again.context()
    assert again.ended() == {}
    assert texts(again) == "After it."


@pytest.mark.parametrize("how", ["drop", "refuse"])
def test_streams_that_break_off(start: Start, how: str) -> None:
    program = start({"fail": {"how": how}})
    program.run()
    program.context()
    assert "broken" in program.ended()


def test_a_hang_ends_with_the_stand_in(start: Start) -> None:
    program = start({"fail": {"how": "hang", "times": None}})
    program.run()
    program.context()
    threading.Timer(0.5, program.server.stop).start()  # type: ignore[attr-defined]
    assert "broken" in program.ended()


def test_a_model_that_does_not_exist(start: Start) -> None:
    program = start({"say": "x"})
    program.run(model="invalid-model")
    assert program.ended()["error"]["code"] == "invalid_argument"


def test_a_step_that_nobody_tells(start: Start) -> None:
    program = start({"say": "x"})
    program.run("No contract here.")
    program.context()
    assert "cannot tell which step" in program.ended()["error"]["message"]


def test_the_steps_folder_tells_its_step(start: Start) -> None:
    program = start({"say": "x"}, step="plan")
    program.run("No contract here.")
    program.context("/agents/workspaces/flow/run/plan/-1/tree")
    assert program.ended() == {}
    assert texts(program) == "x"


def test_keys_tokens_and_what_else_is_asked(start: Start) -> None:
    program = start({"say": "x"})
    exchange = "/auth/exchange_user_api_key"
    bad = {"Authorization": "Bearer invalid-key"}
    assert program.http.post(exchange, headers=bad, json={}).status_code == 401
    for headers in (KEY, bad, {"Authorization": ""}):
        assert program.http.post(RUN, headers=headers).status_code == 401
    service = "/aiserver.v1.DashboardService/GetUserPrivacyMode"
    assert program.http.post(service).content == b""
    looked = program.http.post(
        "/aiserver.v1.AnalyticsService/BootstrapStatsig",
        headers={"Content-Type": "application/json"},
    )
    assert looked.json() == {}
    journal = program.http.get("/_rehearsal/requests").json()
    assert [entry["status"] for entry in journal if entry["path"] == RUN] == [401] * 3
