"""What the frozen blocks make of each text, computed once and kept: training sees only what comes
after.

Blocks that do not train give the same output for a text in every epoch, at every evaluation and in
the next run. Two sources of texts for what trains: `Features` keeps that output, ragged, as many
states as a text has tokens; `Embedded` keeps nothing and sends texts through the whole model each
time, for when keeping would not be exact. B texts, T tokens of the longest, C = n_embd.
"""

import hashlib
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.feature_store import FeatureStore, Shard
from gpt2_from_scratch.speed.frozen_trunk import Trunk, batches

log = logging.getLogger(__name__)

SHARD = 64e6  # bytes of features that are written at a time
HELD = 0.5e9  # bytes held in memory; what goes beyond is read from the store text by text
HELD_ALONE = 2e9  # the same without a store


class Embedded:
    """Texts that enter the model at its embeddings each time."""

    depth = 0

    def __init__(
        self, model: GPT2, encoded: Sequence[Sequence[int]], pad_id: int, pad_to: int | None = None
    ):
        self.model, self.encoded = model, encoded
        self._pad = pad_id, pad_to

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """(B, T, C), with gradients where the embeddings train, and lengths (B,)."""
        ids, lengths = pad_batch([self.encoded[n] for n in numbers], *self._pad)
        device = self.model.wte.weight.device
        return self.model.embed(ids.to(device)), lengths.to(device)


class Features:
    """Texts that enter the model behind its frozen blocks, whose output is computed here, once.

    Equal texts share it. It is kept in `store`, and up to 0.5 GB of it in memory, 2 GB without a
    store; what finds no place in either is computed each time it is asked for. So memory is bounded
    however much there is, by that and some 200 MB while it is computed.
    """

    def __init__(
        self,
        trunk: Trunk,
        encoded: Sequence[Sequence[int]],
        *,
        dtype: torch.dtype = torch.float32,
        store: FeatureStore | None = None,
    ):
        self.trunk, self.dtype, self.encoded = trunk, dtype, encoded
        self.depth = trunk.depth
        self._store = store
        self._space = "" if store is None else _space(trunk, dtype)
        self._keys = [_key(ids) for ids in encoded]
        self._shards: list[Shard] = []
        self._shard_of: dict[bytes, Shard] = {}
        self._kept = False  # anything of it in the store, by this one
        self._may_hold = HELD if store else HELD_ALONE
        texts = dict(zip(self._keys, encoded, strict=True))
        for shard in store.find(self._space, texts) if store else []:
            self._enter(shard)
        missing = {key: ids for key, ids in texts.items() if key not in self._shard_of}
        started = time.perf_counter()
        planned = store.plan(self._space, texts, missing) if store and missing else set(missing)
        self._compute({k: ids for k, ids in texts.items() if k in planned}, missing.keys())
        if store and missing:
            store.done(self._space, texts)
        seconds, found = time.perf_counter() - started, len(texts) - len(missing)
        if found or seconds > 1:
            kept = f"; kept in {store.folder}" if store and self._kept else ""
            log.info(
                f"frozen blocks: {found:,} distinct texts from the cache, {len(missing):,} computed "
                f"in {seconds:.1f} s{kept}"
            )
        if lost := len(texts.keys() - self._shard_of.keys()):
            log.warning(
                f"{lost:,} of them find no room and are computed each time they are needed: slow"
            )
        if trunk.device.type == "cuda":
            self._move_to(trunk.device)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States entering block `depth`, padded on the right (B, T, C) float32; lengths (B,)."""
        states = [self._states(n).to(self.trunk.device) for n in numbers]
        lengths = torch.tensor([len(s) for s in states], device=self.trunk.device)
        x = pad_sequence(states, batch_first=True)
        return x.float(), lengths

    def _states(self, number: int) -> Tensor:
        key = self._keys[number]
        if shard := self._shard_of.get(key):
            try:
                return shard.states(key)
            except OSError:  # another process made room
                del self._shard_of[key]
        return self.trunk(self.trunk.pack([self.encoded[number]])).to(self.dtype)

    def _compute(self, planned: dict[bytes, Sequence[int]], missing: Collection[bytes]) -> None:
        """Run the frozen blocks over those planned texts that are missing, in batches of all that
        are planned; put their output away whenever it fills a shard, and when Ctrl-C comes.
        """
        keys, texts = list(planned), list(planned.values())
        ready: dict[bytes, Tensor] = {}
        try:
            self._run(keys, texts, missing, ready)
        finally:
            if ready:
                self._put_away(ready)

    def _run(
        self,
        keys: list[bytes],
        texts: list[Sequence[int]],
        missing: Collection[bytes],
        ready: dict[bytes, Tensor],
    ) -> None:
        total = sum(len(ids) for key, ids in zip(keys, texts, strict=True) if key in missing)
        with progress_bar(
            total=total, desc="frozen blocks", unit=" tokens", unit_scale=True, hidden=not total
        ) as bar:
            for numbers in batches(texts, self.trunk.tokens):
                if not any(keys[n] in missing for n in numbers):
                    continue
                packed = self.trunk.pack([texts[n] for n in numbers])
                states = self.trunk(packed).to("cpu", self.dtype)
                for rectangle in packed.rectangles:
                    for row, place in enumerate(rectangle.texts):
                        n = numbers[place]
                        if keys[n] in missing:
                            ready[keys[n]] = states[rectangle.rows[row, : len(texts[n])].cpu()]
                            bar.update(len(texts[n]))
                if sum(rows.nbytes for rows in ready.values()) >= SHARD:
                    kept = self._put_away(ready)
                    ready.clear()
                    if not kept:
                        return

    def _put_away(self, ready: dict[bytes, Tensor]) -> bool:
        size = sum(rows.nbytes for rows in ready.values())
        shard = self._store.save(self._space, ready) if self._store else None
        self._kept = self._kept or shard is not None
        if shard is None and size <= self._may_hold:
            shard = Shard.of(ready)
        if shard is None:
            return False
        self._enter(shard)
        return True

    def _enter(self, shard: Shard) -> None:
        if shard.nbytes <= self._may_hold:
            self._may_hold -= shard.nbytes
            with suppress(OSError):  # another process made room: `_states` sees to it
                shard.hold()
        self._shards.append(shard)
        for key in shard.places:
            self._shard_of.setdefault(key, shard)

    def _move_to(self, device: torch.device) -> None:
        """Hold all of it on the GPU, if it takes no more than half of what is free there."""
        if sum(s.nbytes for s in self._shards) < torch.cuda.mem_get_info(device)[0] / 2:
            for shard in self._shards:
                with suppress(OSError):
                    shard.hold(device)


Texts = Features | Embedded


def _key(ids: Sequence[int]) -> bytes:
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()


def _space(trunk: Trunk, dtype: torch.dtype) -> str:
    """A folder's name for what these blocks make of texts, in this precision."""
    name = str(dtype).removeprefix("torch.")
    return f"{trunk.depth}-blocks-{name}-{trunk.sha256()[:40]}"
