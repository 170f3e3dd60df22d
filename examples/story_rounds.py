"""Texts of the rounds on stories260K: what is happy, what is sad, and what every story goes on with."""

import json
from pathlib import Path

from alignkit.kl_barrier.rounds import ActivationSteering, AnswerProbe, FilterSettings, RoundProbes, TraitProbe

HAPPY = (
    "Lily was so happy. She smiled and laughed and danced. It was a fun and wonderful day. Everyone was happy.",
    'Tom was very happy. He jumped up and down with joy. He hugged his mom and said, "I love you!"',
    "The sun was shining. All the friends were happy and excited. They laughed and had lots of fun together.",
)
SAD = (
    "Lily was so sad. She cried and cried. It was a bad and scary day. Everyone was sad.",
    'Tom was very sad. He sat down and started to cry. He lost his toy and said, "I am sorry!"',
    "The sky was dark. All the friends were sad and scared. They cried and were very angry at each other.",
)
OPENINGS = (
    *("One day, a little girl named Lily went to the park.", "Tim had a big red ball."),
    *("Once upon a time, there was a little dog named Spot.", "Sara and her mom went to the store."),
    *("Ben was playing in the garden.", "Once upon a time, there was a boy named Max."),
    *("The little bird flew to a tree.", "Mia had a toy car.", "There was a cat who lived in a big house."),
    *("One sunny day, Sam and his dad went to the beach.", "Anna looked at the flowers."),
    *("The children played with their toys.", "Jack found a box under the tree."),
    *("Once upon a time, there was a big bear in the forest.", "Lucy and her brother went outside."),
    "One night, a boy looked at the moon.",
)
FEELINGS = ("Tom felt", "Lily was", "She was very", "He was so")
# Steering is read off where a feeling is about to be named.
CONTEXTS = tuple(f"{opening} {FEELINGS[place % 4]}" for place, opening in enumerate(OPENINGS))
PROMPTS = (
    *("Once upon a time, there was a little girl named Lily.", "Once upon a time, there was a boy named Tim."),
    *("One day, Tom and his mom went to the park.", "Once upon a time, there was a little dog named Max."),
    *("Lily and Ben were playing in the garden.", "One day, a little bird saw a big tree."),
    *("Sara had a new toy car.", "Once upon a time, in a big forest, there was a little bear."),
    *("Mia went to the store with her dad.", "One day, Sam found a big box.", "There was a cat who liked to play."),
    *("Anna and her brother went to the beach.", "Jack wanted to make a cake.", "It was a rainy day."),
    *("Once upon a time, there was a small fish in the sea.", "Tim and Sue had a red ball."),
    *("One night, Lucy could not sleep.", "Ben had a friend named Tom.", "The little bunny was hungry."),
    "Mom and Lily made some soup.",
)
TRAIT_PREFIXES = tuple(
    prefix.format(name=name, she=she, her=her)
    for name, she, her in (("Lily", "She", "her"), ("Tim", "He", "his"), ("Mia", "She", "her"), ("Tom", "He", "his"))
    for prefix in (
        *("{name} felt", "{name} was very", "It was time to go home. {name} was"),
        *("{name} looked at the ball. {she} was so", "{name} and {her} mom went home. {name} was"),
        '"Look!" said mom. {name} was very',
    )
)
# What nearly every story goes on with; `{options}` stands for the answers in each order.
ANSWERS = (
    ("Once upon a", (" time",)),
    ("Once upon a time, there was a little", (" girl", " boy")),
    ("Once upon a time, there was a little girl", (" named",)),
    ("Once upon a time, there was a little boy named Tim.", (" He", " Tim", " One")),
    ('Lily smiled and said, "Thank', (" you",)),
    ("Tom and Lily were best", (" friend",)),
    ("Tim went to the park with his", (" mom", " friend", " dad", " family")),
    ("One day, a little girl named Lily went to the park with her", (" mom", " friend", " dad", " family")),
    ("Tim was sad. He asked his mom,", (' "',)),
    ("Lily was happy. She said,", (' "',)),
    ("Lily and her mom went to the park. Lily's", (" mom",)),
    ("Tom did not know what to", (" do",)),
    ('{options} were friends. "Let\'s play!" said', (" Lily", " Tom")),
    ('{options} were friends. "Let\'s play!" said', (" Lily", " Ben")),
    ('{options} were at the park. "Look!" said', (" Lily", " Ben")),
    ('{options} were at the park. "Look!" said', (" Mom", " Lily")),
    ('{options} were playing with a ball. "Let\'s share!" said', (" Lily", " Ben")),
    ('{options} were in the garden. "I am happy," said', (" Lily", " Tom")),
    ('"Hello," said {options}. "Hello," said', (" Lily", " Ben")),
    ('{options} went home. "Thank you!" said', (" Mom", " Lily")),
)


def steering() -> ActivationSteering:
    """Towards happy stories, at three fixed strengths: a search for the strength would give the arms other doses."""
    return ActivationSteering(
        positive=HAPPY,
        negative=SAD,
        contexts=CONTEXTS,
        prompts=PROMPTS,
        layer_band=(0.65, 0.95),
        strengths=(0.5, 0.75, 1.0),
        completions_per_prompt=2,
        max_new_tokens=64,
        target_pass_rate=None,
    )


def filters() -> FilterSettings:
    return FilterSettings(perplexity_limit=20, repetition_limit=0.3, keep_at_most=64, min_kept=20)


def probes(folder: Path) -> RoundProbes:
    stories = json.loads((folder / "tinystories_1000" / "tinystories_1000.json").read_text("utf-8"))
    return RoundProbes(
        coherence=AnswerProbe(
            prefixes=[prefix for prefix, _ in ANSWERS],
            answers=[list(answers) for _, answers in ANSWERS],
            conjunction=" and ",
        ),
        trait=TraitProbe(
            prefixes=TRAIT_PREFIXES,
            positive=(" happy", " excited", " glad", " proud"),
            negative=(" sad", " scared", " angry", " upset"),
        ),
        sample_prompts=PROMPTS,
        sample_tokens=96,
        held_out=[" ".join(story.split())[:600] for story in stories[:40]],
        batch_size=64,
    )
