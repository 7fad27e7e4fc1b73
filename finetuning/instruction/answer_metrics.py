"""What can be counted of a model's answers, without a judge.

    exact match   the answer is the reference, but for white space at its ends
    ROUGE-L       how much of the reference stands in the answer in the same order (Lin 2004, section 3): with the
                  longest common subsequence of their words, of length L, recall is L / words of the reference,
                  precision L / words of the answer, and the figure their harmonic mean. Words are runs of letters and
                  digits in lower case, as Google's `rouge-score` has them, but of every alphabet
    format        the answer came to an end within its limit, and repeats no mark of the layout
    distinct-n    the share of different n-grams among all n-grams of all answers (Li et al. 2016): a model that says
                  the same to everything has few

They are blunt. A right answer in other words has a low ROUGE-L, and a wrong one in the same words a high one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from finetuning.instruction.prompt_format import PromptFormat
from working_with_text_data.bytepair_enc.bpe import END_OF_TEXT

_WORD = re.compile(r"[^\W_]+")


def words_of(text: str) -> list[str]:
    """Runs of letters and digits, in lower case."""
    return _WORD.findall(text.lower())


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest sequence that both have in this order, with gaps: |a| · |b| steps, |b| numbers."""
    row = [0] * (len(b) + 1)  # row[j]: the answer for what was seen of `a`, and the first j of `b`
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(answer: str, reference: str) -> float:
    """From 0 to 1; 0 where either has no words."""
    said, wanted = words_of(answer), words_of(reference)
    common = longest_common_subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0  # the harmonic mean of L/|said| and L/|wanted|


def exact_match(answer: str, reference: str) -> bool:
    """The same text, but for white space at the ends."""
    return answer.strip() == reference.strip()


def layout_marks(layout: PromptFormat) -> tuple[str, ...]:
    """What a layout writes around messages, such as `### Response:`, and no answer should have in it."""
    text = layout.text([{"role": "user", "content": "\ue000"}, {"role": "assistant", "content": "\ue000"}])
    lines = text.replace("\ue000", "\n").replace(END_OF_TEXT, "\n").splitlines()
    return tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))


def keeps_format(answer: str, ended: bool, marks: Iterable[str]) -> bool:
    """Whether an answer came to an end, says something, and repeats none of the layout's marks."""
    return ended and bool(answer.strip()) and not any(mark in answer for mark in marks)


def distinct(answers: Iterable[str], n: int) -> float:
    """The share of different n-grams of words among all, over all answers; 0 where there are none."""
    grams = [tuple(words[i : i + n]) for words in map(words_of, answers) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
