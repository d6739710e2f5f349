"""Rows written for this test in the form of data sets whose templates need more than field names tell."""

from __future__ import annotations

from typing import Any

EDITED = "The dog ate my <homework/> again ."
ARTICLE = "\n".join(f"Sentence {n} of the article ." for n in range(1, 8))
NER = [("PER", "Ada"), ("LOC", "Rome"), ("ORG", "Acme"), ("TIME", "1999"), ("NUM", "three"), ("MISC", "Nile Prize")]
PROMPTS = {
    "Annotations": [{"Annotations": ["It rose."], "Label": ["significantly increased"]}],
    "Intervention": ["tea"],
    "Comparator": ["water"],
    "Outcome": ["sleep"],
}
TURNS = [
    {"userId": "Alice", "sender": "p1", "sender_class": "Human", "text": "Hello", "id": 0},
    {"userId": "Bob", "sender": "p2", "sender_class": "Bot", "text": "Hi, who are you?", "id": 1},
]
PASSAGE = "The tower was built in 1889. It is tall."

ROWS: dict[str, dict[str, Any]] = {
    "ai2_arc": {
        "question": "What is cold?",
        "choices": {"text": ["ice", "fire"], "label": ["A", "B"]},
        "answerKey": "A",
    },
    "cbt": {"title": "Ada_Byron___The_Old_Mill.txt.out", "content": "Once there was a mill."},
    "climate_fever": {
        "claim": "It is warmer.",
        "claim_label": 0,
        "evidences": [{"evidence": f'"Fact {n}."', "evidence_label": n % 3, "article": "Heat"} for n in range(5)],
    },
    "conv_ai_2": {
        "dialog": TURNS,
        "user_profile": [["I like ", "tea."]],
        "bot_profile": [["I am old."]],
        "eval_score": 3,
    },
    "conv_ai": {
        "context": "A text about tea.",
        "thread": TURNS,
        "users": [{"id": "Alice", "userType": "Human"}, {"id": "Bob", "userType": "Bot"}],
        "evaluation": [
            {"userId": name, "engagement": score, "quality": score, "breadth": score}
            for name, score in (("Alice", 4), ("Bob", 2))
        ],
    },
    "coqa": {
        "story": PASSAGE,
        "questions": ["When was it built?", "Is it tall?"],
        "answers": {"input_text": ["1889", "yes"], "answer_start": [23, 29], "answer_end": [27, 40]},
    },
    "craigslist_bargains": {
        "items": {
            "Price": [80.0, 80.0],
            "Title": ["Lamp", "Lamp"],
            "Category": ["home"] * 2,
            "Description": ["Old"] * 2,
        },
        "agent_info": {"Target": [60.0, 80.0], "Role": ["buyer", "seller"], "Bottomline": ["None", "None"]},
        "utterance": ["Hi", "70?", "Good"],
        "dialogue_acts": {"price": [-1.0, 70.0, -1.0], "intent": ["intro", "init-price", "accept"]},
        "agent_turn": [0, 1, 0],
    },
    "docred": {
        "title": "Ada",
        "sents": [["Ada", "lived", "in", "Rome", "."]],
        "vertexSet": [[{"name": name, "type": kind, "sent_id": 0, "pos": [0, 1]}] for kind, name in NER],
        "labels": {
            "head": [0],
            "tail": [1],
            "relation_id": ["P20"],
            "relation_text": ["place of death"],
            "evidence": [[0]],
        },
    },
    "evidence_infer_treatment": {"Text": "A study of tea. " * 20, "PMCID": 1, "Prompts": PROMPTS},
    "hotpot_qa": {
        "question": "Who built it?",
        "answer": "Ada",
        "type": "bridge",
        "level": "easy",
        "context": {"title": ["Mill", "Ada"], "sentences": [["A mill. ", "It is old."], ["Ada built it."]]},
        "supporting_facts": {"title": ["Mill", "Ada"], "sent_id": [1, 0]},
    },
    "humicroedit": {
        "original": EDITED,
        "edit": "shoe",
        "meanGrade": 1.4,
        "original1": EDITED,
        "original2": EDITED,
        "edit1": "shoe",
        "edit2": "car",
        "meanGrade1": 1.4,
        "meanGrade2": 0.8,
        "label": 1,
    },
    "narrativeqa": {
        "document": {"text": PASSAGE, "summary": {"text": "A tower.", "title": "The Tower"}, "kind": "gutenberg"},
        "question": {"text": "When was it built?"},
        "answers": [{"text": "1889"}, {"text": "In 1889"}],
    },
    "nlu_evaluation_data": {"text": "wake me at six", "scenario": "alarm", "label": 0},
    "openai_humaneval": {
        "prompt": 'def double(x):\n    """Twice x."""\n',
        "canonical_solution": "    return 2 * x\n",
        "entry_point": "double",
        "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n",
    },
    "qed": {
        "question": "when was it built",
        "title_text": "Tower",
        "paragraph_text": PASSAGE,
        "original_nq_answers": [{"start": 23, "end": 27, "string": "1889"}],
        "annotation": {
            "selected_sentence": {"start": 0, "end": 28, "string": "The tower was built in 1889."},
            "answer": [{"paragraph_reference": {"start": 23, "end": 27, "string": "1889"}}],
            "referential_equalities": [],
            "explanation_type": "single_sentence",
        },
        "sentence_starts": [0, 29],
    },
    "scientific_papers": {"article": ARTICLE, "abstract": "We study mills.", "section_names": "Introduction\nEnd"},
    "tydiqa": {
        "language": "english",
        "question_text": "Is it tall?",
        "document_title": "Tower",
        "document_plaintext": PASSAGE,
        "annotations": {
            "yes_no_answer": ["YES"],
            "passage_answer_candidate_index": [0],
            "minimal_answers_start_byte": [0],
            "minimal_answers_end_byte": [9],
        },
    },
}
