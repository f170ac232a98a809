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
