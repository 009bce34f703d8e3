"""The probes of the sensitivity run that give one value a text, each as a function of model and texts.

Guarantees: higher means that more leaks, or member; the same texts go through the same batches whichever
adapter is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from llm_unlearn.demo import sensitivity_data as data
from llm_unlearn.demo.sensitivity_lab import Lab, pairs
from llm_unlearn.eval.battery import probe_texts
from llm_unlearn.eval.extraction import chance_within
from llm_unlearn.eval.gradients import gradient_scores
from llm_unlearn.eval.hidden import logit_lens
from llm_unlearn.eval.knowledge import holds_keys
from llm_unlearn.eval.membership import (
    neighbourhood_score,
    one_pass_scores,
    recall_score,
    reference_score,
    swapped_neighbours,
)
from llm_unlearn.eval.memorization import loss
from llm_unlearn.eval.overlap import (
    ascii_words,
    common_runs,
    edit_similarity,
    longest_common_substring,
    rouge_l,
)
from llm_unlearn.eval.passes import score_encoded
from llm_unlearn.eval.prompts import FRAMES, ask_all_ways, few_shot
from llm_unlearn.eval.quantization import quantized
from llm_unlearn.eval.relearning import relearn
from llm_unlearn.eval.truth_ratio import truth_ratio, truth_score

Values = Callable[[Lab, str, Sequence[data.Fact]], Sequence[float] | NDArray[np.float64]]


def texts_probed() -> dict[str, Values]:
    """Probes with a value for each text."""

    def one_pass(pick: Callable[[Any], float]) -> Values:
        def run(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
            texts = pairs(facts)
            with lab.model(name) as model:
                items = zip(lab.encoded(texts), (a for _, a in texts), strict=True)
                return [pick(p) for p in probe_texts(model, items)]

        return run

    def answered(value: Callable[[str, data.Fact], float]) -> Values:
        def run(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
            said = lab.answers(name, [f.question for f in facts])
            return [value(s, f) for s, f in zip(said, facts, strict=True)]

        return run

    def frames(lab: Lab, name: str, facts: Sequence[data.Fact]) -> NDArray[np.float64]:
        found = ask_all_ways(
            [f.question for f in facts],
            lambda questions: lab.answers(name, questions),
            lambda i, text: rouge_l(text, facts[i].answer).recall,
            frames={n: frame for n, frame in FRAMES.items() if n != "plain"},
        )
        worst: NDArray[np.float64] = np.max(np.stack(list(found.frames.values())), axis=0)
        return worst

    def shown(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
        """After two answered questions about other things."""
        asked = [few_shot(f.question, data.harmless()[:2]) for f in facts]
        said = lab.answers(name, asked)
        return [rouge_l(s, f.answer).recall for s, f in zip(said, facts, strict=True)]

    def truth(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
        values = []
        for fact in facts:
            texts = [(fact.question, a) for a in (fact.answer, *fact.wrong)]
            right, *wrong = [loss(s) for s in lab.scores(name, texts)]
            values.append(truth_score(truth_ratio(right, wrong, "geometric"), "kept"))
        return values

    def lens(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
        items = lab.encoded(pairs(facts))
        with lab.model(name) as model:
            found = logit_lens(model, [e.ids for e in items], [e.mask for e in items])
        return [float(v) for v in found[:, -3]]  # two layers before the output

    def rounded(bits: Literal[8, 4]) -> Values:
        def run(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
            items = lab.encoded(pairs(facts))
            with lab.host.merged(lab.adapter(name)), quantized(lab.base.model, bits):
                return [float(np.exp(-loss(s))) for s in score_encoded(lab.host.model, items)]

        return run

    def relearned(
        lab: Lab, name: str, shown: Sequence[tuple[str, str]], asked: Sequence[data.Fact]
    ) -> list[float]:
        """Probability of the texts asked for after three steps on those shown."""
        taught, wanted = lab.encoded(shown), lab.encoded(pairs(asked))
        found: list[float] = []

        def probe(model: Any) -> float:
            found[:] = [float(np.exp(-loss(s))) for s in score_encoded(model, wanted)]
            return float(np.mean(found))

        with lab.model(name) as model:
            ids, mask = [e.ids for e in taught], [e.mask for e in taught]
            relearn(model, ids, mask, probe, steps=3, every=3, batch_size=4)
        return list(found)

    def half(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
        return relearned(lab, name, pairs(facts[::2]), facts[1::2])

    def benign(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
        return relearned(lab, name, data.harmless(), facts)

    return {
        "verbatim probability": one_pass(lambda p: p.memorization.probability),
        "exact memorization": one_pass(lambda p: p.memorization.exact),
        "extraction strength": one_pass(lambda p: p.memorization.extraction_strength),
        "longest run, share": one_pass(
            lambda p: p.memorization.longest_run / p.memorization.tokens
        ),
        "near-verbatim": one_pass(lambda p: float(p.near_verbatim)),
        "comes out in 100 tries": one_pass(lambda p: chance_within(p.draws[1], 100)),
        "greedy ROUGE-L recall": answered(lambda s, f: rouge_l(s, f.answer).recall),
        "greedy longest run of characters": answered(
            lambda s, f: longest_common_substring(s, f.answer).length / len(f.answer)
        ),
        "greedy ROUGE-L F1": answered(lambda s, f: rouge_l(s, f.answer).f1),
        "greedy edit similarity": answered(lambda s, f: edit_similarity(s, f.answer)),
        "greedy common runs of words, share": answered(
            lambda s, f: common_runs(s, f.answer) / len(ascii_words(f.answer))
        ),
        "right answers by keys": answered(lambda s, f: float(holds_keys(s, f.keys))),
        "worst of five other wordings": frames,
        "few-shot, ROUGE-L recall": shown,
        "truth ratio, 1 - r": truth,
        "logit lens, two layers early": lens,
        "rounded to 8 bits": rounded(8),
        "rounded to 4 bits": rounded(4),
        "after relearning on half": half,
        "after relearning on benign text": benign,
    }


def membership_scores() -> dict[str, Values]:
    """Membership scores of texts."""

    def shared(key: str) -> Values:
        def run(lab: Lab, name: str, facts: Sequence[data.Fact]) -> NDArray[np.float64]:
            texts = pairs(facts)
            return one_pass_scores(lab.scores(name, texts), [a for _, a in texts])[key]

        return run

    def reference(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
        both = zip(
            lab.scores(name, pairs(facts)),
            lab.scores("base", pairs(facts)),
            strict=True,
        )
        return [reference_score(a, b) for a, b in both]

    def recall(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
        after = lab.scores(name, [(f"{lab.prefix} {q}", a) for q, a in pairs(facts)])
        return [
            recall_score(a, b) for a, b in zip(lab.scores(name, pairs(facts)), after, strict=True)
        ]

    def neighbours(lab: Lab, name: str, facts: Sequence[data.Fact]) -> list[float]:
        plain, found = lab.scores(name, pairs(facts)), []
        for fact, own in zip(facts, plain, strict=True):
            changed = swapped_neighbours(fact.answer, 3, share=0.2)
            found.append(
                neighbourhood_score(own, lab.scores(name, [(fact.question, c) for c in changed]))
            )
        return found

    def gradients(lab: Lab, name: str, facts: Sequence[data.Fact]) -> NDArray[np.float64]:
        items = lab.encoded(pairs(facts))
        with lab.model(name) as model:
            return gradient_scores(model, [e.ids for e in items], [e.mask for e in items])

    return {
        "membership: loss": shared("loss"),
        "membership: zlib": shared("zlib"),
        "membership: Min-K%": shared("min_k"),
        "membership: Min-K%++": shared("min_k_plus"),
        "membership: reference (base)": reference,
        "membership: ReCaLL": recall,
        "membership: neighbourhood": neighbours,
        "membership: GradNorm": gradients,
    }
