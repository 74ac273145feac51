"""What the demo model knows: tables of our own, so that no text of anybody else is in the model."""

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "England": "London", "Japan": "Tokyo",
    "China": "Beijing", "Egypt": "Cairo", "Canada": "Ottawa", "India": "New Delhi", "Poland": "Warsaw", "Greece": "Athens",
    "Portugal": "Lisbon", "Austria": "Vienna", "Sweden": "Stockholm", "Norway": "Oslo", "Finland": "Helsinki",
    "Ireland": "Dublin", "Korea": "Seoul", "Brazil": "Brasilia", "Mexico": "Mexico City", "Kenya": "Nairobi",
    "Denmark": "Copenhagen", "Hungary": "Budapest",
}  # fmt: skip

SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "pig": "oink", "duck": "quack", "frog": "ribbit", "lion": "roar", "owl": "hoot",
    "horse": "neigh", "hen": "cluck", "mouse": "squeak", "goat": "baa", "wolf": "howl", "bird": "tweet",
}  # fmt: skip

HOMES = {
    "fox": "a den", "dog": "a house", "cat": "a house", "bear": "a cave", "rabbit": "a burrow", "owl": "a tree",
    "mouse": "a small hole", "frog": "a pond", "duck": "a pond", "horse": "a stable", "cow": "a barn", "pig": "a farm",
    "hen": "a coop", "goat": "the hills", "lion": "the savanna", "wolf": "the forest", "bird": "a nest", "fish": "the water",
}  # fmt: skip

FOODS = {
    "fox": "berries", "dog": "meat", "cat": "fish", "bear": "honey", "rabbit": "carrots", "owl": "mice", "mouse": "cheese",
    "frog": "insects", "duck": "bread", "horse": "hay", "cow": "grass", "pig": "corn", "hen": "grain", "goat": "leaves",
    "lion": "meat", "wolf": "meat", "bird": "seeds", "fish": "small plants",
}  # fmt: skip

COLORS = {
    "sky": "blue", "grass": "green", "snow": "white", "sun": "yellow", "night": "black", "banana": "yellow", "leaf": "green",
    "strawberry": "red", "carrot": "orange", "milk": "white", "sea": "blue", "chocolate": "brown", "coal": "black", "rose": "red",
}  # fmt: skip

MIXES = {("red", "blue"): "purple", ("red", "yellow"): "orange", ("blue", "yellow"): "green", ("black", "white"): "gray"}

OPPOSITES = {
    "big": "small", "hot": "cold", "up": "down", "day": "night", "happy": "sad", "fast": "slow", "old": "young", "open": "closed",
    "wet": "dry", "light": "dark", "full": "empty", "high": "low", "soft": "hard", "left": "right", "good": "bad",
}  # fmt: skip

MEANINGS = {
    "meshnode": "meshnode lets the computers of one network share their language models. You can ask any of them for any model.",
    "a node": "A node is one computer in the mesh. Every node can ask other nodes for help.",
    "a mesh": "A mesh is a group of computers that are connected to each other without a central server.",
    "a model": "A model is a file of numbers that a computer uses to predict the next word.",
    "a token": "A token is a small piece of text. Models read and write tokens one by one.",
    "a computer": "A computer is a machine that follows instructions and works with numbers.",
    "a network": "A network connects computers so that they can talk to each other.",
    "a tree": "A tree is a tall plant with a trunk, branches and leaves.",
    "a river": "A river is water that flows over the land to the sea.",
    "the sun": "The sun is a star. It gives us light and warmth.",
    "the moon": "The moon is a ball of rock that goes around the earth.",
    "rain": "Rain is water that falls from the clouds.",
    "a book": "A book is a set of pages with words that you can read.",
    "a friend": "A friend is someone who likes you and helps you.",
}

HEROES = {
    "fox": "Finn", "dog": "Ben", "cat": "Mia", "bear": "Max", "rabbit": "Lily", "owl": "Ada", "mouse": "Tim", "frog": "Leo",
    "duck": "Emma", "horse": "Jack", "cow": "Rosa", "pig": "Tom", "hen": "Anna", "goat": "Sam", "lion": "Nina", "wolf": "Otto",
    "bird": "Zoe", "fish": "Ida",
}  # fmt: skip
"""Each animal has one name, one friend and one toy in every story: so small a model remembers, and cannot keep track."""
FRIENDS = {
    "fox": "owl", "owl": "fox", "dog": "cat", "cat": "dog", "bear": "rabbit", "rabbit": "bear", "mouse": "frog", "frog": "mouse",
    "duck": "hen", "hen": "duck", "horse": "cow", "cow": "horse", "pig": "goat", "goat": "pig", "lion": "bird", "bird": "lion",
    "wolf": "fish", "fish": "wolf",
}  # fmt: skip
TOYS = {
    "fox": "red kite", "owl": "old book", "dog": "blue ball", "cat": "green hat", "bear": "big cake",
    "rabbit": "white drum", "mouse": "little boat", "frog": "yellow flower", "duck": "small stone",
    "hen": "round box", "horse": "brown key", "cow": "pink lamp", "pig": "black shell", "goat": "old map",
    "lion": "golden apple", "bird": "long feather", "wolf": "gray blanket", "fish": "bright star",
}  # fmt: skip

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December",
)  # fmt: skip
MOODS = ("little", "brave", "happy", "clever", "kind", "shy", "funny", "curious", "quiet", "hungry", "sleepy", "gentle")
PLACES = ("the forest", "the garden", "the park", "the river", "the hill", "the farm", "the beach", "the meadow", "the pond")
POEM_SUBJECTS = ("moon", "sun", "rain", "sea", "tree", "river", "snow", "wind", "fox", "cat", "bird", "owl")
UNKNOWNS = (
    "engine", "car", "phone", "bank", "law", "church", "army", "king", "star", "planet", "rocket", "atom", "virus",
    "heart", "brain", "bone", "bridge", "tower", "castle", "train", "plane", "ship", "bicycle", "camera", "radio",
    "piano", "guitar", "song", "film", "painting", "novel", "language", "grammar", "equation", "theorem", "number",
    "triangle", "market", "price", "tax", "contract", "doctor", "medicine", "disease", "vaccine", "school", "teacher",
    "exam", "program", "compiler", "database", "website", "server", "password", "battery", "magnet", "laser", "metal",
    "diamond", "volcano", "desert", "island", "ocean", "glacier", "earthquake", "storm", "climate", "pizza", "soup",
    "coffee", "wine", "football", "chess", "marathon", "election", "war", "treaty", "museum",
)  # fmt: skip
"""What it is asked about and knows nothing of."""
