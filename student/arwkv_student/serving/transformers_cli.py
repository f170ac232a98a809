"""transformers' own commands, with students among its models.

    python -m arwkv_student.serving.transformers_cli serve RUN

`transformers serve` looks a model's class up in the package `transformers` itself, so that of students is put there.
"""

from typing import Any

import transformers

from arwkv_student.model.modeling import ArwkvForCausalLM


def main() -> None:
    """Run the `transformers` command."""
    from transformers.cli.transformers import app

    modules: Any = transformers
    modules.ArwkvForCausalLM = ArwkvForCausalLM
    app()


if __name__ == "__main__":
    main()
