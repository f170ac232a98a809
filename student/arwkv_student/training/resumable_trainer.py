"""Common to all stages' trainers: rates by parameter, and checkpoints that are marked when complete."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import Sampler
from transformers import Trainer

from arwkv_student.data.balance import EqualWork, Pick
from arwkv_student.model.loading import kept_attention, load_any_student
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.optimizers.choice import make_optimizer
from arwkv_student.optimizers.weight_average import WeightAverage
from arwkv_student.run.durable import sync_files, write_json
from arwkv_student.run.run_folder import WHOLE
from arwkv_student.sharding.distributed_checkpoint import (
    BackgroundCheckpoints,
    has_shares,
    load_optimizer_shares,
    load_shares,
)
from arwkv_student.sharding.fsdp import (
    full_state_dict,
    is_sharded,
    load_optimizer_state,
    load_weights,
)
from arwkv_student.training.parameters import parameter_groups
from arwkv_student.training.plan import StagePlan


class ResumableTrainer(Trainer):  # type: ignore[misc] # transformers is untyped
    """A Trainer whose checkpoints another number of processes, sharded or not, can continue."""

    plan: StagePlan
    optimizer: torch.optim.Optimizer | None = None
    average: WeightAverage | None = None
    """With --ema: updated after each step of the optimizer."""
    background: BackgroundCheckpoints | None = None
    """Writes the checkpoints of a sharded student."""
    complete: Callable[[Path], None]
    """Adds the tokenizer and other files to a student's folder."""

    def findings(self) -> dict[str, Any]:
        """Further figures of a finished stage's summary, besides steps, tokens and loss."""
        raise NotImplementedError("a stage says what it found")

    def _move_model_to_device(self, model: torch.nn.Module, device: torch.device) -> None:
        """Not with --fsdp: the whole model need not fit there, and `shard` places it layer by layer."""
        if not self.args.spread:
            super()._move_model_to_device(model, device)

    def dealt(self, picks: Sampler[Pick], length_of: Callable[[Pick], int]) -> Sampler[Any]:
        """The picks as batches of about as many tokens; as they are, if a step is one batch."""
        batches, processes = self.args.gradient_accumulation_steps, self.args.world_size
        if batches * processes == 1:
            return picks
        per_step = self.args.per_device_train_batch_size * batches * processes
        place = {"rank": self.args.process_index, "processes": processes}
        return EqualWork(picks, length_of, per_step=per_step, batches=batches, **place)

    def training_step(self, model: Any, *arguments: Any, **named: Any) -> torch.Tensor:
        """With FSDP2, gradients are exchanged with the last batch of a step only."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(self.accelerator.sync_gradients)
        loss: torch.Tensor = super().training_step(model, *arguments, **named)
        return loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """The settings' optimizer over time mixers and other parameters, each with its rate; vectors do not decay."""
        optimizer: torch.optim.Optimizer | None = self.optimizer
        if optimizer is None:
            args = self.args
            model, muon = self.model if model is None else model, args.optimizer == "muon"
            groups = parameter_groups(model, self.plan, args.weight_decay, muon=muon)
            options = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
            optimizer = self.optimizer = make_optimizer(args.optimizer, groups, lr=args.learning_rate, **options)
            if args.ema is not None:
                average = self.average = WeightAverage(model, args.ema)
                optimizer.register_step_post_hook(lambda *_: average.update())
        assert optimizer is not None
        return optimizer

    def save_student(self, folder: Path) -> None:
        """Save the trained student in its stage's folder; with --ema, its average."""
        if self.average is not None:
            self.average.keep()
        if self.background is not None:
            self.background.wait()
        self.save_model(str(folder))
        # A pickle of this run's settings, which the student does not need.
        (folder / "training_args.bin").unlink(missing_ok=True)

    def with_average(self) -> contextlib.AbstractContextManager[None]:
        """While the block runs, the model has its average weights, if there are any."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def evaluation_loop(self, *arguments: Any, **named: Any) -> Any:
        """With --ema, the average is evaluated."""
        with self.with_average():
            return super().evaluation_loop(*arguments, **named)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Of a sharded student's checkpoint, the configuration alone: its shares are written in the background."""
        if not (_internal_call and is_sharded(self.model)):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            self.model.config.save_pretrained(output_dir)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        in_fp32 = isinstance(self.model, ArwkvForCausalLM) and self.model.dtype == torch.float32
        if is_sharded(self.model):
            state_dict = full_state_dict(self.model)
        elif self.args.should_save and in_fp32:
            state_dict = self.model.state_dict()
        if state_dict is not None and in_fp32:
            # All of one type: frozen weights may be held in bf16 (see `hold_frozen_in_bf16`).
            state_dict = {name: value.float() for name, value in state_dict.items()}
        if self.args.should_save:
            super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if has_shares(Path(resume_from_checkpoint)):
            load_shares(Path(resume_from_checkpoint), self.model)
        elif is_sharded(self.model):
            load_weights(self.model, Path(resume_from_checkpoint))
        elif not hasattr(self.model, "peft_config") and kept_attention(Path(resume_from_checkpoint)):
            # By transformers' own function, which knows the names of weights in a file.
            self.model.load_state_dict(load_any_student(Path(resume_from_checkpoint)).state_dict())
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """By parameter name: another number of processes, sharded or not, can continue from it."""
        if is_sharded(self.model):
            self.background = self.background or BackgroundCheckpoints()
            self.background.write(Path(output_dir), self.model, self._own_optimizer())
        elif self.args.should_save:
            torch.save(get_optimizer_state_dict(self.model, self._own_optimizer()), Path(output_dir) / "optimizer.pt")
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")
            if self.average is not None:
                self.average.save(Path(output_dir))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            if has_shares(Path(checkpoint)):
                load_optimizer_shares(Path(checkpoint), self.model, self._own_optimizer())
            else:
                load_optimizer_state(self.model, self._own_optimizer(), Path(checkpoint) / "optimizer.pt")
            self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / "scheduler.pt", weights_only=True))
            if self.average is not None:
                self.average.load(Path(checkpoint), self.lr_scheduler.last_epoch)

    def _own_optimizer(self) -> torch.optim.Optimizer:
        """Without accelerate's wrapper."""
        assert self.optimizer is not None, "the optimizer is made before a checkpoint is read or written"
        own: torch.optim.Optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        return own

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process leaves its random state there
        if not self.args.should_save:
            return
        step = self.state.global_step
        checkpoint = Path(self.args.output_dir) / f"checkpoint-{step}"
        if (checkpoint / "config.json").is_file():  # adapters alone are no student
            self.complete(checkpoint)

        def mark() -> None:
            sync_files(checkpoint)
            write_json(checkpoint / WHOLE, {"step": step})

        if self.background is None:
            mark()
        else:
            self.background.when_written(mark)
