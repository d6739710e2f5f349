"""How far words alone tell the better story of a pair: bags of words, and length.

python benchmarks/alignment/word_counts.py

Three logistic regressions on unigrams and bigrams, fitted on the training pairs (the best of four strengths of
regularisation, by five-fold cross-validation) and judged on the held-out pairs: on the difference of a pair's counts;
on single stories, with their prompt's words as features of their own; and on the difference again, with how often each
story repeats what its prompt names, which no bag of words knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack, vstack
from scipy.stats import binomtest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold

from graftlm.demo.criterion import ENDINGS, wish_of

from singles import Pair, pairs  # isort: skip

Features = Callable[[Sequence[tuple[str, str]]], csr_matrix]
STRENGTHS = (0.01, 0.1, 1.0, 10.0)


def counter(texts: Sequence[str]) -> CountVectorizer:
    """Unigrams and bigrams, as written: a name counts as a name."""
    return CountVectorizer(ngram_range=(1, 2), lowercase=False, token_pattern=r"\w+", min_df=2).fit(texts)


def repeats(told: Sequence[tuple[str, str]]) -> csr_matrix:
    """How often a story has its prompt's name and thing, and whether it has the ending asked for, anywhere."""

    def row(prompt: str, story: str) -> list[float]:
        wish = wish_of(prompt)
        ending = any(form in story for form in ENDINGS[wish.ending])
        done = any(re.search(rf"\b{wish.name} {form}", story) for form in ENDINGS[wish.ending])
        return [len(re.findall(wish.name, story)), len(re.findall(wish.thing, story)), ending, done]

    return csr_matrix(np.array([row(*one) for one in told], dtype=float))


def fitted(x: csr_matrix, y: np.ndarray, groups: Sequence[str]) -> LogisticRegression:
    search = GridSearchCV(LogisticRegression(max_iter=3000), {"C": STRENGTHS}, cv=GroupKFold(5))
    return search.fit(x, y, groups=groups).best_estimator_


def both(rows: Sequence[Pair]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    return ([(row["prompt"], row["chosen"]) for row in rows], [(row["prompt"], row["rejected"]) for row in rows])


def by_difference(features: Features, train: Sequence[Pair], held_out: Sequence[Pair]) -> np.ndarray:
    """Scores of the held-out pairs, above 0 where the chosen story wins; fitted on pairs both ways round."""
    good, bad = (features(told) for told in both(train))
    difference = good - bad
    groups = [row["prompt"] for row in train]
    model = fitted(vstack([difference, -difference]).tocsr(), np.repeat([1, 0], len(train)), groups * 2)
    good, bad = (features(told) for told in both(held_out))
    return (good - bad) @ model.coef_[0]


def by_single(features: Features, train: Sequence[Pair], held_out: Sequence[Pair]) -> tuple[np.ndarray, float]:
    """The same, fitted on single stories; with the share of single held-out stories that it labels right."""
    good, bad = both(train)
    groups = [row["prompt"] for row in train]
    model = fitted(features([*good, *bad]), np.repeat([1, 0], len(train)), groups * 2)
    scores = [model.decision_function(features(told)) for told in both(held_out)]
    single = (np.mean(scores[0] > 0) + np.mean(scores[1] <= 0)) / 2
    return scores[0] - scores[1], float(single)


def show(name: str, scores: np.ndarray, single: float | None = None) -> None:
    """Accuracy on pairs, a tie as half, with Wilson's interval."""
    wins = int(np.sum(scores > 1e-9)) + int(np.sum(np.abs(scores) <= 1e-9)) / 2
    low, high = binomtest(round(wins), len(scores)).proportion_ci(method="wilson")
    beside = "" if single is None else f"; single stories {single:.1%}"
    print(f"{name:48} {wins / len(scores):6.1%} of pairs ({low:.1%} to {high:.1%}){beside}")


def main() -> None:
    train, held_out = pairs("train"), pairs("held_out")
    print(f"{len(train):,} training pairs, {len(held_out):,} held-out pairs")
    stories = counter([row[key] for row in train for key in ("chosen", "rejected")])
    prompts = counter([row["prompt"] for row in train])

    def alone(told: Sequence[tuple[str, str]]) -> csr_matrix:
        return stories.transform([story for _, story in told])

    def with_prompt(told: Sequence[tuple[str, str]]) -> csr_matrix:
        return hstack([alone(told), prompts.transform([prompt for prompt, _ in told])]).tocsr()

    def with_repeats(told: Sequence[tuple[str, str]]) -> csr_matrix:
        return hstack([alone(told), repeats(told)]).tocsr()

    lengths = np.array([[len(row[key].split()) for key in ("chosen", "rejected")] for row in held_out])
    show("the longer story", lengths[:, 0] - lengths[:, 1])
    show("words of the stories, difference", by_difference(alone, train, held_out))
    show("words of story and prompt, single", *by_single(with_prompt, train, held_out))
    show("the same with what it repeats of the prompt", by_difference(with_repeats, train, held_out))


if __name__ == "__main__":
    main()
