"""A small context in TAT-QA's form, with a question of each type."""

from typing import Any


def small_context(prefix: str = "q") -> dict[str, Any]:
    """Five questions whose uids begin with `prefix`."""
    table = [
        ["", "Years Ended September 30,", ""],
        ["", "2019", "2018"],
        ["Fixed price", "$ 1,452.4", "$ 1,146.2"],
        ["Other", "44.1", "56.7"],
        ["Total sales", "$1,496.5", "$1,202.9"],
        ["Units sold", "8,400", "7,900"],
    ]
    paragraphs = [
        {"uid": "p2", "order": 2, "text": "Amounts are in millions and follow the contract type of each customer."},
        {
            "uid": "p1",
            "order": 1,
            "text": "On a cost-plus type contract we are paid our allowable costs plus a fixed profit. Revenue from "
            "service agreements is recognised evenly over the term of the contract, which is three years as a rule.",
        },
    ]
    questions = [
        ("span", "What is the amount of total sales in 2019?", ["$1,496.5"], "million", "table"),
        ("span", "What is the company paid on a cost-plus type contract?", ["our allowable costs"], "", "text"),
        ("multi-span", "Which years does the table show?", ["2019", "2018"], "", "table"),
        ("arithmetic", "What is the change in Other in 2019 from 2018?", -12.6, "million", "table-text"),
        ("count", "How many years had total sales above 1,000 million?", "2", "", "table"),
    ]
    return {
        "table": {"uid": f"{prefix}-table", "table": table},
        "paragraphs": paragraphs,
        "questions": [
            {
                "uid": f"{prefix}{number}",
                "order": number,
                "question": text,
                "answer": answer,
                "answer_type": answer_type,
                "answer_from": source,
                "scale": scale,
            }
            for number, (answer_type, text, answer, scale, source) in enumerate(questions)
        ],
    }
