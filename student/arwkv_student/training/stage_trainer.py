"""Common to stages 1 and 2: `transformers.Trainer` over shards, in an order that a restart does not change."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PrinterCallback

from arwkv_student.data.collate import ShardSamples, collate
from arwkv_student.data.mixture import MixtureSampler
from arwkv_student.evaluation.held_out import HeldOutShards
from arwkv_student.run.run_folder import RunFolder
from arwkv_student.settings import TrainSettings
from arwkv_student.sharding.start import share_out
from arwkv_student.training.plan import StagePlan, training_arguments
from arwkv_student.training.resumable_trainer import ResumableTrainer
from arwkv_student.training.run_log import RunLog, reporters


class StageTrainer(ResumableTrainer):
    """Stages 1 and 2: a Trainer over `collate`d samples of shards."""

    counted = "predicts"
    """The field of a batch that is true where a position counts in the loss."""

    def __init__(
        self,
        model: PreTrainedModel,
        samples: ShardSamples,
        run: RunFolder,
        plan: StagePlan,
        settings: TrainSettings,
        bf16: bool,
        held_out: HeldOutShards | None = None,
    ) -> None:
        self.log_of_run = RunLog(run, plan, held_out, settings.eval_every)
        self.plan, self.settings, self.samples = plan, settings, samples
        super().__init__(
            model=model,
            args=training_arguments(run.stage(plan.name), plan, settings, bf16),
            train_dataset=samples,
            data_collator=partial(collate, packing=settings.packing, few_lengths=settings.fuse),
            callbacks=[self.log_of_run, *reporters(run.path, plan.name, settings)],
        )
        self.remove_callback(PrinterCallback)
        self.log_of_run.evaluated = self.with_average
        self.loss_is_scaled_for_ga = True
        if settings.fsdp:
            share_out(model, self.args.device)
            # Trainer's flag for a model that manages its own placement and gradients.
            self.is_distributed_loading_by_transformers = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any]:
        args = self.args
        per_step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        datasets, plan = self.samples.datasets, self.plan
        rows = [dataset.shard_rows for dataset in datasets]
        picks = MixtureSampler(rows, plan.weights, args.max_steps, per_step, args.data_seed, plan.schedule, datasets)
        return self.dealt(picks, self.samples.length) if self.settings.packing else picks

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Positions that count in this step, over its batches and all processes."""
        counts = [batch[self.counted].sum() for batch in batch_samples]
        count = torch.stack(counts).sum().float().to(device) if counts else torch.zeros((), device=device)
        total: Tensor = self.accelerator.reduce(count, reduction="sum")
        return total

    def weighed(self, loss: Tensor, batch: dict[str, Tensor], total: Tensor | None) -> Tensor:
        """The mean over the batch's positions, weighted by its share of the step's `total`.

        Batches are added, and processes are averaged. So the step's loss is the mean over all of its positions, however
        they are split.
        """
        if total is None:
            return loss
        weighed: Tensor = loss * (batch[self.counted].sum() * self.args.world_size / total.clamp_min(1.0))
        return weighed

    def findings(self) -> dict[str, Any]:
        """Figures on held-out shards, if there are any."""
        if self.log_of_run.held_out is None:
            return {}
        step, tokens = self.state.global_step, self.state.num_input_tokens_seen
        return {"eval": self.log_of_run.write_evaluation(self.model, step, tokens)}

    def compute_loss(
        self, model: Any, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        raise NotImplementedError("a stage says what its loss is")
