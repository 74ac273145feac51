"""The text that the demo model learns from: ChatML conversations drawn from small rules and the tables of `facts.py`.

Everything is a function of a `random.Random`, so that a seed gives the same text again.
"""

from collections.abc import Callable
from random import Random

from demo_model import facts

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIALS = (END_OF_TEXT, TURN_START, TURN_END)

Turn = tuple[str, str]
"""A question and its answer."""

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a tiny assistant.",
    "Answer briefly.",
    "You are a friendly helper.",
    "Be kind and short.",
)


def a(word: str) -> str:
    """The word with its article."""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def capitalized(text: str) -> str:
    return text[0].upper() + text[1:]


def ask(rng: Random, *forms: str) -> str:
    """One of the forms, sometimes as people type: in lower case, without the mark at the end."""
    question = rng.choice(forms)
    if rng.random() < 0.15:
        question = question.rstrip("?.!")
    return question.lower() if rng.random() < 0.15 else question


def greeting(rng: Random) -> Turn:
    return (
        ask(
            rng, "Hello", "Hi!", "Hi there!", "Hey", "Good morning!", "Hello there!", "Hello, how are you?", "How are you today?"
        ),
        rng.choice(
            (
                "Hello! How can I help you today?",
                "Hi! I am glad that you are here. What would you like to know?",
                "Hello! I am well, thank you. Ask me something simple.",
            )
        ),
    )


def who(rng: Random) -> Turn:
    return (
        ask(
            rng,
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Tell me about yourself.",
            "Which model are you?",
            "Are you real?",
        ),
        rng.choice(
            (
                "I am a tiny demo model. I am only a megabyte, and I run on your own computer.",
                "I am a very small language model that comes with meshnode. I know only a few simple things.",
                "I am the demo model of this mesh. I am small, so please add a bigger model for real work.",
            )
        ),
    )


def abilities(rng: Random) -> Turn:
    return (
        ask(rng, "What can you do?", "How can you help me?", "What do you know?", "Help!", "What can I ask you?"),
        rng.choice(
            (
                "I can tell short stories about animals, name some capitals, add small numbers and answer simple questions.",
                "I am only a demo. I can tell a little story, say what sound an animal makes, or name a capital city.",
            )
        ),
    )


def farewell(rng: Random) -> Turn:
    if rng.random() < 0.5:
        return ask(rng, "Thank you!", "Thanks!", "Thank you very much.", "Good job!"), rng.choice(
            ("You are welcome!", "You are welcome. Ask me anything simple.", "I am happy to help.")
        )
    return ask(rng, "Bye!", "Goodbye!", "See you later!", "Good night!"), rng.choice(
        ("Goodbye! See you soon.", "Goodbye, and have a nice day!")
    )


def capital(rng: Random) -> Turn:
    country, city = rng.choice(list(facts.CAPITALS.items()))
    forms = (
        f"What is the capital of {country}?", f"What's the capital of {country}?", f"Name the capital of {country}.",
        f"Which city is the capital of {country}?", f"Tell me the capital of {country}.", f"Capital of {country}?",
    )  # fmt: skip
    return ask(rng, *forms), f"The capital of {country} is {city}."


def sound(rng: Random) -> Turn:
    animal, noise = rng.choice(list(facts.SOUNDS.items()))
    return ask(rng, f"What sound does {a(animal)} make?", f"What does the {animal} say?", f"How does {a(animal)} sound?"), (
        f"{capitalized(a(animal))} says {noise}."
    )


def home(rng: Random) -> Turn:
    animal, place = rng.choice(list(facts.HOMES.items()))
    return ask(
        rng, f"Where does {a(animal)} live?", f"Where does the {animal} live?"
    ), f"{capitalized(a(animal))} lives in {place}."


def food(rng: Random) -> Turn:
    animal, meal = rng.choice(list(facts.FOODS.items()))
    return ask(
        rng, f"What does {a(animal)} eat?", f"What does the {animal} like to eat?"
    ), f"{capitalized(a(animal))} eats {meal}."


def color(rng: Random) -> Turn:
    thing, value = rng.choice(list(facts.COLORS.items()))
    if rng.random() < 0.8:
        return ask(rng, f"What color is the {thing}?", f"What is the color of the {thing}?", f"What colour is the {thing}?"), (
            f"The {thing} is {value}."
        )
    (one, two), mixed = rng.choice(list(facts.MIXES.items()))
    if rng.random() < 0.5:
        one, two = two, one
    return ask(
        rng, f"What do you get when you mix {one} and {two}?", f"Mix {one} and {two}."
    ), f"If you mix {one} and {two}, you get {mixed}."


def total(rng: Random) -> Turn:
    x, y = rng.randint(0, 10), rng.randint(0, 10)
    if rng.random() < 0.65:
        forms = f"What is {x} + {y}?", f"What is {x} plus {y}?", f"{x} + {y}", f"Add {x} and {y}.", f"How much is {x} + {y}?"
        return ask(rng, *forms), f"{x} + {y} = {x + y}."
    x, y = max(x, y), min(x, y)
    return ask(rng, f"What is {x} - {y}?", f"What is {x} minus {y}?", f"How much is {x} - {y}?"), f"{x} - {y} = {x - y}."


def counting(rng: Random) -> Turn:
    last = rng.randint(2, 20)
    if rng.random() < 0.7:
        forms = f"Count to {last}.", f"Count from 1 to {last}.", f"Can you count to {last}?"
        return ask(rng, *forms), f"Counting to {last}: {', '.join(map(str, range(1, last + 1)))}."
    return ask(rng, f"What comes after {last}?", f"Which number comes after {last}?"), f"After {last} comes {last + 1}."


def meaning(rng: Random) -> Turn:
    term, text = rng.choice(list(facts.MEANINGS.items()))
    return ask(rng, f"What is {term}?", f"Explain what {term} is.", f"Tell me about {term}.", f"Can you explain {term}?"), text


def opposite(rng: Random) -> Turn:
    one, two = rng.choice(list(facts.OPPOSITES.items()))
    if rng.random() < 0.5:
        one, two = two, one
    return ask(rng, f"What is the opposite of {one}?", f"Tell me the opposite of {one}."), f"The opposite of {one} is {two}."


def calendar(rng: Random) -> Turn:
    unit, names = rng.choice((("day", facts.DAYS), ("month", facts.MONTHS)))
    index = rng.randrange(len(names))
    answer = f"After {names[index]} comes {names[(index + 1) % len(names)]}."
    return ask(rng, f"What {unit} comes after {names[index]}?", f"Which {unit} follows {names[index]}?"), answer


def refusal(rng: Random) -> Turn:
    """Questions about anything else: made from many words, so that it is the unknown itself that is learnt, and not a list."""
    subject, other = rng.sample(facts.UNKNOWNS, 2)
    forms = (
        f"Who invented the {subject}?", f"How does {a(subject)} work?", f"Why is the {subject} so important?",
        f"Explain {subject} to me.",
        f"What do you know about the {subject}?", f"Write an essay about the {subject}.", f"How do I repair {a(subject)}?",
        f"What is the best {subject}?", f"Where can I buy {a(subject)}?", f"Compare the {subject} and the {other}.",
        f"When was the {subject} built?", f"How many {subject}s are there?", f"Why does the {subject} need {a(other)}?",
        "What is the meaning of life?", "What is the weather today?", "What time is it?", "What is the latest news?",
    )  # fmt: skip
    return ask(rng, *forms), rng.choice(
        (
            "I do not know that. I am only a tiny demo model.",
            "I am sorry, that is too hard for a tiny demo model. Please try a bigger model.",
        )
    )


def poem(rng: Random) -> Turn:
    subject = rng.choice(facts.POEM_SUBJECTS)
    text = rng.choice(
        (
            f"Oh {subject}, oh {subject}, so bright and so free,\nI see you each morning from under my tree.",
            f"The {subject} is near, the day is new,\nthe grass is green, the sky is blue.",
        )
    )
    return ask(rng, f"Write a poem about the {subject}.", f"Write a short poem about the {subject}."), text


def story(rng: Random) -> Turn:
    animal = rng.choice(list(facts.HEROES))
    if rng.random() < 0.75:
        forms = (
            f"Tell me a story about {a(animal)}.",
            f"Write a short story about {a(animal)}.",
            f"A story about {a(animal)}, please.",
        )
    else:
        forms = "Tell me a story.", "Write a short story.", "Can you tell me a story?"
    return ask(rng, *forms), tale(rng, animal)


def tale(rng: Random, animal: str) -> str:
    """Seven sentences about a hero, a friend and a toy."""
    friend, toy, place = facts.FRIENDS[animal], facts.TOYS[animal], rng.choice(facts.PLACES)
    hero, other = facts.HEROES[animal], facts.HEROES[friend]
    sentences = (
        (f"Once upon a time there was {a(rng.choice(facts.MOODS))} {animal} named {hero}.",),
        (f"{hero} the {animal} lived in {facts.HOMES[animal]}.", f"{hero} the {animal} loved to eat {facts.FOODS[animal]}."),
        (f"One day {hero} went to {place} and found {a(toy)}.", f"One day {hero} found {a(toy)} near {place}."),
        (f"Then {other} the {friend} came by.", f"Soon {hero} met {other} the {friend}."),
        (f'"What a nice {toy}!" said {other}.', f"{other} liked the {toy} too."),
        (f'"Let us share it," said {hero}.', f"So {hero} and {other} played with the {toy} all day."),
        (f"From that day on, {hero} and {other} were best friends.", f"In the end {hero} and {other} were happy."),
    )
    return " ".join(rng.choice(forms) for forms in sentences)


TOPICS: tuple[tuple[Callable[[Random], Turn], int], ...] = (
    (greeting, 8), (who, 8), (abilities, 4), (farewell, 4), (capital, 13), (sound, 6), (home, 5), (food, 5), (color, 7),
    (total, 12), (counting, 7), (meaning, 9), (opposite, 5), (calendar, 5), (refusal, 10), (poem, 3), (story, 18),
)  # fmt: skip
"""What is asked, and how often out of about a hundred."""


def turn(rng: Random) -> Turn:
    (topic,) = rng.choices([topic for topic, _ in TOPICS], [weight for _, weight in TOPICS])
    return topic(rng)


def render(role: str, text: str) -> str:
    return f"{TURN_START}{role}\n{text}{TURN_END}\n"


def conversation(rng: Random) -> str:
    """One to three turns, sometimes under a system prompt."""
    system = render("system", rng.choice(SYSTEM_PROMPTS)) if rng.random() < 0.35 else ""
    turns = [turn(rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3)))]
    return system + "".join(render("user", question) + render("assistant", answer) for question, answer in turns) + END_OF_TEXT
