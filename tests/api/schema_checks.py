"""What schemathesis checks of every answer besides its own checks; loaded by it, from SCHEMATHESIS_HOOKS."""

import schemathesis


@schemathesis.check
def busy_answer_says_when_to_ask_again(
    _ctx: schemathesis.CheckContext, response: schemathesis.Response, _case: schemathesis.Case
) -> None:
    """A 429 or 503 carries Retry-After in whole seconds."""
    if response.status_code in (429, 503):
        after_s = response.headers.get("retry-after", [])
        assert len(after_s) == 1, "no Retry-After"
        assert int(after_s[0]) > 0


@schemathesis.hook
def before_call(_ctx: schemathesis.HookContext, case: schemathesis.Case, _kwargs: dict[str, object]) -> None:
    """Events are asked for as they are now: those to come would be waited for until the request's time is up."""
    if case.path == "/v1/events" and str(case.query.get("follow", True)).lower() in (
        "true",
        "t",
        "yes",
        "y",
        "on",
        "1",
    ):
        case.query["follow"] = "false"
