"""The inputs of the trainable part: the frozen blocks' output for each text, computed once.

Frozen blocks give the same output for a text in every epoch, at every evaluation and in the next
run. `Features` keeps that output: as many states as a text has tokens, without padding. `Embedded`
keeps nothing and sends texts through the whole model each time; it serves where kept output would
not be exact. B texts per batch, T tokens in the longest, C = n_embd.
"""

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2_from_scratch.gpt2.model import GPT2
from gpt2_from_scratch.progress import progress_bar
from gpt2_from_scratch.speed.batching import pad_batch
from gpt2_from_scratch.speed.feature_store import FeatureStore, Shard
from gpt2_from_scratch.speed.frozen_trunk import Trunk

log = logging.getLogger(__name__)

SHARD = 64e6  # bytes of features that are written at a time
MEMORY = 0.5e9  # bytes held in memory; features beyond it are read from the store text by text
MEMORY_ALONE = 2e9  # the same without a store


class Embedded:
    """Texts that enter the model at its embeddings each time."""

    depth = 0

    def __init__(
        self, model: GPT2, encoded: Sequence[Sequence[int]], pad_id: int, pad_to: int | None = None
    ):
        self.model, self.encoded = model, encoded
        self._pad = pad_id, pad_to

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Embed the texts with these numbers: (B, T, C), lengths (B,).

        The embeddings have gradients if they are trainable.
        """
        ids, lengths = pad_batch([self.encoded[n] for n in numbers], *self._pad)
        device = self.model.wte.weight.device
        return self.model.embed(ids.to(device)), lengths.to(device)


class Features:
    """Texts that enter the model after its frozen blocks, whose output is computed here, once.

    Equal texts share it. It is kept in `store`, and at most 0.5 GB of it in memory (2 GB without a
    store). Output that has no place in either is computed each time it is needed. So memory is
    bounded, whatever the number of texts, by that and some 200 MB for the computation.
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
        self._store, self._space = store, space_name(trunk, dtype) if store else ""
        self._keys = [text_key(ids) for ids in encoded]
        self._shards: list[Shard] = []
        self._shard_of: dict[bytes, Shard] = {}
        self._free = MEMORY if store else MEMORY_ALONE  # bytes that may still be held in memory
        texts = dict(zip(self._keys, encoded, strict=True))
        for shard in store.find(self._space, texts) if store else []:
            if self._fits(shard, texts):
                self._add(shard)
        missing = {key: ids for key, ids in texts.items() if key not in self._shard_of}
        started = time.perf_counter()
        self._compute(missing)
        self._report(len(texts), missing, time.perf_counter() - started)
        if trunk.device.type == "cuda":
            nbytes = sum(shard.nbytes for shard in self._shards)
            if nbytes < torch.cuda.mem_get_info(trunk.device)[0] / 2:  # of the free memory
                for shard in self._shards:
                    with suppress(OSError, ValueError):  # see `_states`
                        shard.hold(trunk.device)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Pad the states entering block `depth` on the right: (B, T, C) float32, lengths (B,)."""
        states = [self._states(n).to(self.trunk.device) for n in numbers]
        lengths = torch.tensor([len(s) for s in states], device=self.trunk.device)
        x = pad_sequence(states, batch_first=True)
        return x.float(), lengths

    def _states(self, number: int) -> Tensor:
        key = self._keys[number]
        if shard := self._shard_of.get(key):
            try:
                return shard.states(key)
            except (OSError, ValueError) as error:  # another process changed or removed it
                self._replace(shard, error)
        if shard := self._shard_of.get(key):
            with suppress(OSError, ValueError):
                return shard.states(key)
        ids = self.encoded[number]
        packed = self.trunk.pack([ids], whole_tiles=True)
        return self.trunk(packed)[: len(ids)].to(self.dtype)

    def _replace(self, shard: Shard, error: Exception) -> None:
        """Compute a shard's texts again."""
        assert self._store
        self._store.discard(shard, error)
        self._shards = [other for other in self._shards if other is not shard]
        lost = {k: s for k, s in self._shard_of.items() if s is shard}
        self._shard_of = {k: s for k, s in self._shard_of.items() if s is not shard}
        texts = zip(self._keys, self.encoded, strict=True)
        self._compute({key: ids for key, ids in texts if key in lost})

    def _fits(self, shard: Shard, texts: Mapping[bytes, Sequence[int]]) -> bool:
        """Return whether a shard holds what these blocks compute; one that does not is removed."""
        assert self._store
        kind = shard.width == self.trunk.wte.shape[1] and shard.dtype == self.dtype
        if kind and all(
            rows.stop - rows.start == len(texts[key])
            for key, rows in shard.places.items()
            if key in texts
        ):
            return True
        self._store.discard(shard, ValueError("its states have another shape or type"))
        return False

    def _compute(self, missing: Mapping[bytes, Sequence[int]]) -> None:
        """Run the frozen blocks over texts; keep the output whenever it fills a shard.

        Whole tiles: the output is the same to the bit whichever texts are missing.
        """
        keys, texts = list(missing), list(missing.values())
        total = sum(map(len, texts))
        ready: dict[bytes, Tensor] = {}  # output of whole batches that is not kept yet
        with progress_bar(
            total=total, desc="frozen blocks", unit=" tokens", unit_scale=True, hidden=not total
        ) as bar:
            try:
                for numbers in self.trunk.batches(texts):
                    packed = self.trunk.pack([texts[n] for n in numbers], whole_tiles=True)
                    states = self.trunk(packed).to("cpu", self.dtype)
                    ready |= {
                        keys[numbers[n]]: states[rows[: len(texts[numbers[n]])]]
                        for r in packed.rectangles
                        for n, rows in zip(r.texts, r.rows.cpu(), strict=True)
                    }
                    bar.update(sum(len(texts[n]) for n in numbers))
                    if sum(rows.nbytes for rows in ready.values()) >= SHARD:
                        kept = self._keep(ready)
                        ready = {}
                        if not kept:
                            return
            finally:  # also after Ctrl-C
                if ready:
                    self._keep(ready)

    def _keep(self, texts: Mapping[bytes, Tensor]) -> bool:
        """Put features into the store, or else into memory; False if neither has room."""
        shard = self._store.save(self._space, texts) if self._store else None
        if shard is None and sum(rows.nbytes for rows in texts.values()) <= self._free:
            shard = Shard.of(texts)
        if shard is None:
            return False
        self._add(shard)
        return True

    def _add(self, shard: Shard) -> None:
        if shard.nbytes <= self._free:
            self._free -= shard.nbytes
            with suppress(OSError, ValueError):  # another process changed it: see `_states`
                shard.hold()
        self._shards.append(shard)
        for key in shard.places:
            self._shard_of.setdefault(key, shard)

    def _report(self, n_texts: int, missing: Mapping[bytes, Sequence[int]], seconds: float) -> None:
        found = n_texts - len(missing)
        computed = [self._shard_of[key] for key in missing if key in self._shard_of]
        if found or seconds > 1:
            where = ""
            if self._store and any(shard.path for shard in computed):
                where = f"; kept in {self._store.folder}"
            log.debug(
                f"frozen blocks: {found:,} distinct texts from the cache, {len(missing):,} computed "
                f"in {seconds:.1f} s{where}"
            )
        if lost := len(missing) - len(computed):
            log.warning(
                f"no room for the frozen blocks' output of {lost:,} texts; it is computed each time "
                "it is needed, which is slow"
            )


Texts = Features | Embedded


def text_key(ids: Sequence[int]) -> bytes:
    """Hash the token ids of a text: 32 bytes."""
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()


def space_name(trunk: Trunk, dtype: torch.dtype) -> str:
    """Name the store's folder for what these blocks compute, in this precision."""
    name = str(dtype).removeprefix("torch.")
    return f"{trunk.depth}-blocks-{name}-{trunk.sha256()[:40]}"
