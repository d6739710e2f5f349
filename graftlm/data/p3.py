"""Rows that PromptSource's templates were rendered to upstream (P3): ``template``, ``prompt`` and ``completion``.

Their template is the name of the data set and that of the template in one word, as glue_mrpc_want_to_know.
"""

from __future__ import annotations

import re
from functools import lru_cache

from graftlm.data.instances import ORIGINS, Provenance

# The data sets of P3's training mixture by what a model has to do, and some more whose templates fit real files.
FAMILIES = {
    "acceptability": "glue_cola",
    "closed-book": "kilt_tasks_hotpotqa hotpot_qa wiki_qa trivia_qa web_questions nq_open",
    "common-sense": "commonsense_qa cos_e social_i_qa cosmos_qa piqa openbookqa",
    "inference": "esnli snli anli glue_mnli glue_rte glue_wnli super_glue_cb super_glue_rte multi_nli xnli hans",
    "paraphrase": "glue_mrpc glue_qqp paws quora medical_questions_pairs",
    "question-type": "trec",
    "reading-choice": "dream quail quarel quartz qasc sciq wiqa wiki_hop race",
    "reading-open": "adversarial_qa duorc ropes quoref squad squad_v2 xquad coqa drop",
    "sentiment": "amazon_polarity app_reviews imdb rotten_tomatoes yelp_review_full yelp_polarity glue_sst2 sst",
    "simplification": "asset turk wiki_split",
    "structure-to-text": "common_gen wiki_bio e2e_nlg_cleaned enriched_web_nlg",
    "summarising": "cnn_dailymail gigaword multi_news samsum xsum billsum aeslc",
    "topic": "ag_news dbpedia_14 yahoo_answers_topics",
}
_FAMILY = {name: family for family, names in FAMILIES.items() for name in names.split()}


@lru_cache(maxsize=4096)
def data_set_of(name: str) -> str:
    """The data set that the name of a template or data set begins with; empty where it is not known."""
    words = re.sub(r"\W+", "_", name).strip("_").lower().split("_")
    beginnings = ("_".join(words[:end]) for end in range(len(words), 0, -1))
    return next((beginning for beginning in beginnings if beginning in _FAMILY), "")


def family_of(name: str) -> str:
    """The family of a template or data set by the data set that its name begins with; empty where it is not known."""
    return _FAMILY.get(data_set_of(name), "")


def origin_of(row: dict[str, object]) -> Provenance:
    """Where a row that names its ``template`` comes from. Other rows say nothing that can be relied on."""
    if not isinstance(row.get("template"), str):
        return Provenance()
    given = {name: str(row[name]) for name in ORIGINS if isinstance(row.get(name), str | int)}
    given.setdefault("task", family_of(given["template"]))
    return Provenance(**given)
