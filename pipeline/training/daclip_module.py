"""Stage (a) as Lightning trains it: the controller learns to embed content and degradation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.functional import normalize
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics.classification import MulticlassConfusionMatrix

from datamodules.batch import Batch
from modules.clip.daclip import DaClip
from modules.clip.losses import gather, info_nce, multi_positive
from modules.clip.preprocess import clip_crops, random_clip_preprocess
from pipeline.training.draws import draw_generators
from pipeline.training.group_mean import by_group
from pipeline.training.optim import decay_groups
from pipeline.training.sections import ControllerConfig

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]
DEGRADATION_TARGETS = ("identity", "multi_positive")


class DaClipModule(LightningModule):
    """Two contrastive losses of equal weight, on the captions and on the degradation words.

    loss = InfoNCE(e_c, text(caption)) + InfoNCE(e_d, text(word))     (DA-CLIP, eq. 4)
    """

    def __init__(
        self,
        daclip: DaClip,
        settings: ControllerConfig,
        words: Sequence[str],
        make_optimizer: MakeOptimizer,
        lr_schedule: Callable[[int], float],
        seed: int,
    ) -> None:
        """Train a DA-CLIP.

        Args:
            daclip: the network; what of it is frozen stays so.
            settings: the section of the configuration. `degradation_targets` is `identity`, as
                published: each sample's own word is the only right one, though others share it; or
                `multi_positive`: all samples of its word are. `crop_scale` is the share of the
                image's area that random crops keep, and `crops_per_side` what validation embeds.
            words: the degradations.
            make_optimizer: from parameter groups.
            lr_schedule: step -> share of the learning rate.
            seed: of the crops.

        Raises:
            ValueError: there are no such targets.
        """
        super().__init__()
        if settings.degradation_targets not in DEGRADATION_TARGETS:
            raise ValueError(
                f"unknown degradation_targets {settings.degradation_targets!r}; choose one of: "
                f"{', '.join(DEGRADATION_TARGETS)}"
            )
        self.daclip = daclip
        self.words = tuple(words)
        self._make_optimizer, self._lr_schedule = make_optimizer, lr_schedule
        self._multi_positive = settings.degradation_targets == "multi_positive"
        least, largest = settings.crop_scale
        self._crop_scale, self._seed = (least, largest), seed
        self._crops_per_side = settings.crops_per_side
        self._frozen_words: Tensor | None = None
        # It would refuse a single word, of a restorer for one task.
        self.confusion = MulticlassConfusionMatrix(len(words), validate_args=False)
        self.recognised = torch.zeros(len(words), len(words))
        """Samples of the last validation by true word (row) and the one found (column)."""

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum of both losses over the batches of all ranks."""
        embeddings = self.daclip(self._random_views(batch))
        ids = self._ids(batch.degradation)
        captions = self._encode(batch.caption)
        words = self._encode_words()[ids]
        scale = self.daclip.logit_scale.exp()
        content = info_nce(gather(normalize(embeddings.content, dim=-1)), gather(captions), scale)
        pair = gather(normalize(embeddings.degradation, dim=-1)), gather(words)
        if self._multi_positive:
            degradation = multi_positive(*pair, scale, gather(ids))
        else:
            degradation = info_nce(*pair, scale)
        self.log_dict({"content_loss": content, "degradation_loss": degradation}, prog_bar=True)
        return content + degradation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count which degradation is recognised in which."""
        images = (
            image[:, :height, :width].float() / 255
            for image, (height, width) in zip(batch.lq, batch.size, strict=True)
        )
        side = self.daclip.image_size
        views = [clip_crops(image[None], side, self._crops_per_side)[0] for image in images]
        seen = self.daclip(torch.cat(views)).degradation.split([len(those) for those in views])
        words = self._encode_words().float()
        with torch.autocast(self.device.type, enabled=False):  # in bfloat16 near words would tie
            degradation = torch.stack([each.float().mean(dim=0) for each in seen])
            found = (normalize(degradation, dim=-1) @ words.T).argmax(dim=-1)
        self.confusion.update(found[batch.valid], self._ids(batch.degradation)[batch.valid])

    def on_validation_epoch_end(self) -> None:
        """Share of a word's samples in which it is recognised, and the mean of the words."""
        counts = self.confusion.compute().float().reshape(self.recognised.shape)
        self.confusion.reset()
        self.recognised = counts.cpu()
        shares = counts.diag() / counts.sum(dim=1)
        accuracy = {"degradation_accuracy": shares.nanmean()}
        self.log_dict(accuracy, prog_bar=True, sync_dist=True)
        self.log_dict(by_group("degradation_accuracy", self.words, shares), sync_dist=True)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Keep the logit scale within 1..100 after each step, as CLIP does."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            self.daclip.logit_scale.clamp_(0, torch.tensor(100.0).log().item())

    def configure_optimizers(self) -> Any:
        """The recipe's optimizer, its rate set every step."""
        optimizer = self._make_optimizer(decay_groups(self.parameters()))
        scheduler = LambdaLR(optimizer, self._lr_schedule)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _random_views(self, batch: Batch) -> Tensor:
        generators = draw_generators(torch.device("cpu"), self._seed, batch.number)
        side = self.daclip.image_size
        return random_clip_preprocess(batch.lq, side, self._crop_scale, generators, batch.size)

    def _encode(self, texts: Sequence[str]) -> Tensor:
        tokens = self.daclip.tokenize(texts).to(self.device)
        return normalize(self.daclip.encode_text(tokens), dim=-1)

    def _encode_words(self) -> Tensor:
        """Embeddings of the degradations; of a frozen CLIP, computed once."""
        if not self.daclip.clip_is_frozen:
            return self._encode(self.words)
        if self._frozen_words is None:
            # Not of inference mode, in case validation asks first: training saves it for backward.
            full = torch.autocast(self.device.type, enabled=False)
            with torch.inference_mode(False), torch.no_grad(), full:
                self._frozen_words = self._encode(self.words)
        return self._frozen_words

    def _ids(self, words: Sequence[str]) -> Tensor:
        return torch.tensor([self.words.index(word) for word in words], device=self.device)
