"""Inputs of the trainable part of a model.

The output of frozen blocks for a text is the same in every epoch, in every evaluation and in the next
run. `Features` computes it once and keeps it: one state per token, without padding. `Embedded` keeps
nothing and only embeds the tokens. It is used where cached output would not be exact.

Shapes: B texts per batch, T tokens in the longest text, C = n_embd.
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
from gpt2_from_scratch.storage.processes import count, wait_for_all

log = logging.getLogger(__name__)

SHARD = 64e6  # bytes of features per file in the store
MEMORY = 0.5e9  # most bytes kept in memory; other features are read from the store text by text
MEMORY_ALONE = 2e9  # most bytes kept in memory if there is no store


class Embedded:
    """Inputs without cached features: the embeddings of the tokens."""

    depth = 0

    def __init__(
        self, model: GPT2, encoded: Sequence[Sequence[int]], pad_id: int, pad_to: int | None = None
    ):
        self.model, self.encoded = model, encoded
        self._pad = pad_id, pad_to

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Embed the texts with these indices: (B, T, C), lengths (B,).

        The result has gradients if the embeddings are trainable.
        """
        ids, lengths = pad_batch([self.encoded[n] for n in numbers], *self._pad)
        device = self.model.wte.weight.device
        return self.model.embed(ids.to(device)), lengths.to(device)


class Features:
    """Inputs with cached features: the frozen blocks' output for each text.

    Identical texts share their output. The output is saved in `store`, and up to 0.5 GB of it is kept
    in memory (2 GB if there is no store). Output that fits into neither is computed again each time.
    Memory use is therefore bounded for any number of texts. The computation itself needs about
    another 200 MB.

    Several processes each compute a part of the texts, and find the others' parts in the store.
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
        self._free = MEMORY if store else MEMORY_ALONE  # bytes still available for features
        texts = dict(zip(self._keys, encoded, strict=True))
        missing = self._find(texts)
        started = time.perf_counter()
        left = missing
        if store and count() > 1:
            wait_for_all()  # until all know what is missing
            self._compute(missing, shared=True)
            wait_for_all()
            left = self._find(missing)
        self._compute(left)
        self._report(len(texts), missing, time.perf_counter() - started)
        if trunk.device.type == "cuda":
            nbytes = sum(shard.nbytes for shard in self._shards)
            if nbytes < torch.cuda.mem_get_info(trunk.device)[0] / 2:  # half of the free memory
                for shard in self._shards:
                    with suppress(OSError, ValueError):  # see `_states`
                        shard.hold(trunk.device)

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the inputs of block `depth`, padded on the right: (B, T, C) float32, lengths (B,)."""
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
        """Discard a shard that cannot be used, and compute its texts again."""
        assert self._store
        self._store.discard(shard, error)
        self._shards = [other for other in self._shards if other is not shard]
        discarded = {k: s for k, s in self._shard_of.items() if s is shard}
        self._shard_of = {k: s for k, s in self._shard_of.items() if s is not shard}
        texts = zip(self._keys, self.encoded, strict=True)
        self._compute({key: ids for key, ids in texts if key in discarded})

    def _find(self, texts: Mapping[bytes, Sequence[int]]) -> dict[bytes, Sequence[int]]:
        """Add the store's shards with these texts; return the texts whose features are missing."""
        unknown = {key: ids for key, ids in texts.items() if key not in self._shard_of}
        for shard in self._store.find(self._space, unknown) if self._store and unknown else []:
            if self._fits(shard, texts):
                self._add(shard)
        return {key: ids for key, ids in unknown.items() if key not in self._shard_of}

    def _fits(self, shard: Shard, texts: Mapping[bytes, Sequence[int]]) -> bool:
        """Return whether a shard has the right shapes and type.

        If it does not, it is discarded.
        """
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

    def _compute(self, missing: Mapping[bytes, Sequence[int]], *, shared: bool = False) -> None:
        """Run the frozen blocks on texts, and keep their output.

        With `shared`, each of several processes computes a part of the texts. The output is kept as
        soon as there is enough of it for a shard. The computation uses complete tiles (see
        `frozen_trunk`), so the output for a text is bit-identical, no matter which other texts are
        missing.
        """
        keys, texts = list(missing), list(missing.values())
        total = sum(map(len, texts))
        ready: dict[bytes, Tensor] = {}  # output that has been computed but not kept yet
        with progress_bar(
            total=total, desc="frozen blocks", unit=" tokens", unit_scale=True, hidden=not total
        ) as bar:
            try:
                for numbers, packed, x in self.trunk.run(
                    texts, whole_tiles=True, shared=shared, advance=bar.update
                ):
                    states = x.to("cpu", self.dtype)
                    ready |= {
                        keys[numbers[n]]: states[rows[: len(texts[numbers[n]])]]
                        for r in packed.rectangles
                        for n, rows in zip(r.texts, r.rows.cpu(), strict=True)
                    }
                    if sum(rows.nbytes for rows in ready.values()) >= SHARD:
                        kept = self._keep(ready)
                        ready = {}
                        if not kept:
                            return
            finally:  # also after Ctrl-C
                if ready:
                    self._keep(ready)

    def _keep(self, texts: Mapping[bytes, Tensor]) -> bool:
        """Save features in the store or, failing that, in memory.

        Returns False if both are full.
        """
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
            with suppress(OSError, ValueError):  # changed by another process, see `_states`
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
                where = f"; saved in {self._store.folder}"
            log.debug(
                f"frozen blocks: {found:,} distinct texts from the cache, {len(missing):,} computed "
                f"in {seconds:.1f} s{where}"
            )
        if not_kept := len(missing) - len(computed):
            log.warning(
                f"no space for the frozen blocks' output of {not_kept:,} texts; it is computed again "
                "each time, which is slow"
            )


Texts = Features | Embedded


def text_key(ids: Sequence[int]) -> bytes:
    """Hash the token ids of a text to 32 bytes."""
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()


def space_name(trunk: Trunk, dtype: torch.dtype) -> str:
    """Return the name of the space (see `feature_store`) for the output of these blocks."""
    name = str(dtype).removeprefix("torch.")
    return f"{trunk.depth}-blocks-{name}-{trunk.sha256()[:40]}"
