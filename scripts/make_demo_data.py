"""Write the demo's instruction data: three tasks, a training file and a held-out file each.

    python scripts/make_demo_data.py [FOLDER]      (default: graftlm/demo/data)

Everything is written by hand below and combined with a fixed seed, so a second run gives the same bytes.
Material has two parts, "train" and "held_out", that share no entry: the held-out rows use causes, signs,
story patterns, problems, things, places and names that no training row uses. What both use: the instructions,
neutral openers and greetings, and the answers of feelings and advice.

feelings   a short story -> how the child feels, one word of FEELINGS
questions  a short story and a who, where or what question -> the answer, words of the story
advice     somebody with a problem -> what to do, one of 18 sentences
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import TypeVar

SEED = 20
TRAIN_ROWS = {"feelings": 900, "questions": 2200, "advice": 1000}
HELD_OUT_ROWS = {"feelings": 204, "questions": 204, "advice": 204}
FOLDER = Path(__file__).resolve().parent.parent / "graftlm" / "demo" / "data"

Row = dict[str, str]
T = TypeVar("T")


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def names(text: str) -> list[str]:
    """What stands between commas."""
    return [" ".join(part.split()) for part in text.split(",")]


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One item; only `random()` is promised to stay the same in every Python version."""
    return items[int(rng.random() * len(items))]


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    return [item for _, item in sorted(((rng.random(), i), item) for i, item in enumerate(items))]


def sentence(text: str) -> str:
    """Capital letters at the start of every sentence; not after quotes: '"Help!" he cried.'"""
    return re.sub(r"(^|[.!?] )([a-z])", lambda found: found[0].upper(), text)


# ---------------------------------------------------------------------------------------------- people

GIRLS = {
    "train": names("""
        Lily, Mia, Anna, Sara, Emma, Lucy, Ella, Amy, Molly, Sally, Kate, Rosie, Daisy, Jane, Betty, Clara,
        Nora, Ruby, Alice, Bella, Cindy, Emily, Fiona, Helen, Jenny, Julia, Laura, Lisa, Nina, Polly, Rose,
        Susie, Tina, Wendy, Ada, Beth, Carla, Dora, Eva, Gina, Holly, Ivy, Jessie, Katie, Lena, Lulu, Meg,
        Nelly, Olivia, Pam, Sophie, Tess, Vera
    """),
    "held_out": names("""
        Zoe, Grace, Mary, Sue, Lola, Maya, Sarah, Jill
    """),
}
BOYS = {
    "train": names("""
        Tom, Ben, Sam, Max, Jack, Leo, Finn, Joe, Bob, Peter, Dan, Oscar, Hugo, Noah, Adam, Paul, Luke,
        Toby, Alex, Andy, Bill, David, Eric, Frank, George, Harry, Henry, Jim, Jimmy, Mike, Nick, Ned, Roy,
        Will, Alan, Brian, Carl, Dave, Ed, Felix, Greg, Ian, Ken, Kevin, Leon, Matt, Otto, Pete, Ralph,
        Rick, Steve, Ted, Tony, Walter
    """),
    "held_out": names("""
        Tim, John, Mark, Fred, Billy, Charlie, James, Rob
    """),
}
PRONOUNS = {
    "girl": {"s": "she", "p": "her", "o": "her", "child": "girl"},
    "boy": {"s": "he", "p": "his", "o": "him", "child": "boy"},
}


def child(rng: random.Random, split: str) -> dict[str, str]:
    """Name and pronouns: n, s (she), p (her bag), o (saw her), child."""
    kind, group = pick(rng, [("girl", GIRLS), ("boy", BOYS)])
    return {"n": pick(rng, group[split]), **PRONOUNS[kind]}


# -------------------------------------------------------------------------------------------- feelings

FEELINGS = ("happy", "sad", "angry", "scared", "proud", "tired")

FEELING_QUESTIONS = lines("""
    How does {n} feel?
    How does {n} feel? Answer with one word.
    What does {n} feel in this story?
    Read the story. How does the {child} feel?
    Which feeling fits {n} best: happy, sad, angry, scared, proud or tired?
    Name the feeling of {n}.
    Say in one word how {n} feels now.
    Choose one word for {n}: happy, sad, angry, scared, proud, tired.
    Tell me how {n} feels at the end.
""")

# Facts that say nothing about the feeling.
OPENERS = lines("""
    {n} is six years old.
    {n} has short brown hair.
    It was a Monday.
    It was Friday afternoon.
    {n} lives in a small yellow house.
    {n} is a {child} with blue boots.
    This is a story about {n}.
    Once there was a {child} called {n}.
    {n} lives near the sea.
    {n} has two brothers.
    {n} had a green coat on.
    There was a {child} named {n}.
    It was a cloudy day in spring.
    {n} lives on a farm.
    Here is what happened to {n}.
    It was the first week of autumn.
""")

CAUSES = {
    "train": {
        "happy": lines("""
            Grandma gave {n} a big hug and a new toy.
            It was {p} birthday, and all {p} friends came with presents.
            The sun came out, and {n} ran to the beach to play in the sand.
            {n} got a little brown puppy for Christmas.
            Dad took {n} to the fair, and they rode on the big wheel.
            {p} best friend came to play, and they laughed all day.
            Mom said they would go to the zoo, and {n} jumped up and down.
            {n} opened the box and saw the train {s} had always wanted.
            The ice cream man gave {n} a free ice cream.
            {n} and {p} cousins danced and sang around the tree.
            {n} found {p} lost teddy bear at last and hugged it.
            It began to snow, and {n} made a snowman with {p} sister.
            Dad came home early and played ball with {n}.
            {n} splashed in the puddles and giggled.
            The clown made a funny face, and {n} laughed and laughed.
            Mom let {n} lick the chocolate from the spoon.
            {n} got a card with hearts from all the children in class.
            Uncle Bill came to stay and brought {n} a kite.
            They had a picnic by the lake with cake and games.
            The kitten sat on {p} lap and purred.
            {p} friends sang a song for {o} and clapped.
            {n} swam with {p} dad in the warm sea all morning.
            There were pancakes for breakfast and a party in the evening.
            The school was closed, and {n} could play outside all day.
            {n} rode a pony for the first time and loved it.
            {n} saw a rainbow and danced in the garden.
            {n} got a new bicycle, just the one {s} had dreamed of.
            {n} and Grandma baked a pie and sang songs.
            {n} played tag in the sunshine with all {p} friends.
            A new girl at school wanted to be friends with {n}.
            {n} slid down the big slide again and again, laughing.
            There was a puppet show, and {n} liked it so much.
        """),
        "sad": lines("""
            {p} goldfish died in the night.
            {n} lost {p} favorite doll and could not find it.
            {p} best friend moved away to another town.
            The balloon flew away into the sky, and it did not come back.
            Nobody wanted to play with {n} at school.
            It rained, so the trip to the zoo was called off.
            Grandpa had to go home, and {n} waved goodbye for a long time.
            {n} dropped {p} ice cream on the ground.
            {p} old dog was very ill and could not get up.
            All the other children got a card, but {n} got none.
            {n} broke the cup that Grandma had given {o}.
            The little bird that {n} had cared for was dead.
            Mom was away for a week, and {n} missed her.
            {n} sat alone at lunch, and nobody talked to {o}.
            The flowers that {n} had planted were all dead.
            {p} friend said, "I do not want to be your friend anymore."
            {n} was too ill to go to the party.
            The snowman melted, and only his hat was left.
            {p} cat ran away and did not come home.
            {p} sand castle was washed away by the sea.
            The shop had no more of the toys {n} wished for.
            {n} forgot {p} teddy on the bus, and it was gone for ever.
            It was {p} birthday, but nobody came.
            {p} father went away on a ship for many months.
            The book ended, and the poor little deer died.
            {n} had to give away {p} kitten.
            {p} grandfather was very sick, and nobody could help him.
            {n} said goodbye to {p} teacher, who went away for ever.
            The rabbit was so ill that it died in {p} arms.
            {n} watched the others leave and stayed behind all alone.
            {p} new toy sank in the lake and was gone.
            {n} had hoped to go to the circus, but now {s} could not.
        """),
        "angry": lines("""
            {p} brother took {p} toy car and would not give it back.
            A boy pushed {n} and laughed at {o}.
            {p} sister tore {p} drawing to pieces.
            Somebody ate the cookie that {n} had saved.
            The big boys kicked down {p} tower of blocks on purpose.
            A girl cut in front of {n} in the line again and again.
            {p} sister told a lie, and Mom blamed {n}.
            {p} friend broke {p} new crayons and did not say sorry.
            A boy called {n} a bad name.
            {p} cousin cheated in the game and said he had won.
            The neighbor threw mud at {p} clean coat.
            {p} brother pulled {p} hair and ran off.
            A girl grabbed the swing and shouted, "It is mine!"
            The boys would not share the ball with {n}, and they were mean.
            {p} brother drew on {p} best book with a pen.
            Somebody stole {p} bike from the yard.
            A boy threw sand in {p} face.
            {p} sister wore {p} new shoes without asking and made them dirty.
            The children made fun of {p} hat.
            A mean boy stepped on {p} sand castle.
            {p} brother woke {o} up with a loud drum, just to tease {o}.
            A girl spilled paint on {p} picture and laughed.
            {p} friend kept hitting {o} with a stick.
            It was not fair: {p} brother got two cakes and {n} got none.
            {n} said stop, but the boy kept on teasing {o}.
            The fox stole {p} lunch and ate it in front of {o}.
            {p} cousin smashed {p} toy train on purpose.
            The boys knocked down {p} hut and ran away laughing.
            A girl snatched the pencil out of {p} hand.
            {p} brother tripped {o} and thought it was funny.
            A big girl shoved {n} and took {p} place.
            {p} sister would not stop making faces at {o}.
        """),
        "scared": lines("""
            {n} heard a strange noise under the bed.
            A huge dog ran at {n} and showed its teeth.
            The lights went out, and it was all dark.
            There was a loud bang of thunder right over the house.
            {n} was lost in the forest, and night was coming.
            A big spider crawled up {p} leg.
            {n} saw two yellow eyes in the dark.
            {n} dreamed of a monster and woke up.
            The ladder began to shake while {n} was at the top.
            A snake came out of the grass near {p} foot.
            {n} could not see Mom anywhere in the big shop.
            The wind howled, and something knocked on the window at night.
            A bear came out of the cave and roared.
            {n} had to walk past the old dark house alone.
            The boat rocked, and the waves grew very high.
            {n} heard slow steps behind {o} in the fog.
            A wolf howled close to the tent.
            {n} was stuck high in the tree and looked down.
            The door shut behind {o}, and {s} was locked in the dark cellar.
            A bull ran after {n} across the field.
            Bees buzzed all around {p} head.
            {n} saw a big shadow move on the wall.
            A witch in the story jumped out at the children.
            The ice cracked under {p} feet.
            {n} thought there was a ghost behind the curtain.
            A giant came down the hill with a big club.
            {n} walked over a shaky bridge high above the river.
            A shark swam around {p} boat.
            The candle went out, and {n} was alone in the tunnel.
            {n} heard a growl outside the tent.
            A big crow flew at {p} head.
            Something moved in the dark closet.
        """),
        "proud": lines("""
            {n} won first prize in the race.
            {n} tied {p} shoes all alone for the first time.
            {n} read a whole book without help.
            The teacher said that {p} picture was the best in the class.
            {n} learned to ride {p} bike without falling.
            {n} built the tallest tower in the school.
            {n} got a gold star for {p} hard work.
            {n} saved a little boy who had fallen into the pond.
            {n} baked a cake all by {o}self, and everybody said it was good.
            {n} won a medal at the swimming race.
            {n} sang on the stage, and the people stood up and clapped.
            {n} wrote {p} own name for the first time.
            {n} worked hard and got every answer right on the test.
            Dad said, "You did a great job, {n}. Well done!"
            {n} fixed the broken chair without any help.
            {n} climbed to the top of the hill before all the others.
            {n} grew the biggest pumpkin and got a ribbon for it.
            {n} practiced for weeks, and now {s} could play the song on the piano.
            {n} scored the goal that won the game.
            The king thanked {n} for being brave and gave {o} a medal.
            {n} swam across the pool for the first time without help.
            {n} taught {p} little brother to count, and Mom said well done.
            {p} drawing was hung up at school for all to see.
            {n} did the hard puzzle that nobody else could do.
            {n} was brave at the doctor and got a badge for it.
            {n} made a kite with {p} own hands, and it flew.
            {n} pulled a puppy out of the cold river and saved it.
            {n} cleaned up the whole garden without being told, and Dad praised {o}.
            {n} learned to skate after many falls.
            {n} had the best story in the class, and the teacher read it out loud.
            {n} jumped higher than all the others and won a cup.
            {n} beat {p} big brother at cards.
        """),
        "tired": lines("""
            {n} had walked up the long hill all day with a heavy bag.
            It was very late, and {n} had not slept yet.
            {n} had played football for hours and hours.
            {n} got up before the sun and worked until dark.
            {n} carried wood for Grandpa the whole day.
            The baby cried all night, so {n} did not sleep.
            After the long walk {n} could not take one more step.
            {n} had run around the field ten times.
            The trip in the car took all night.
            It was past bedtime, and the party had been long.
            {n} helped on the farm from morning until night.
            {n} swam and ran and jumped all day long.
            {n} dug in the garden all day until the moon came out.
            {n} had danced the whole night.
            {n} rode {p} bike for many miles.
            The plane came very late, and it was the middle of the night.
            {n} had carried heavy boxes up the stairs all morning.
            {n} stayed up late to read and had to get up early.
            {n} had shoveled snow for hours.
            {n} had been awake since four in the morning.
            {n} had climbed a mountain that day, and {p} legs hurt.
            {n} washed every window of the house, one after the other.
            After the long day at school {n} went straight to {p} room.
            {n} rowed the boat all the way across the lake.
            The night was short, and {n} had slept only a little.
            {n} pulled the sled up the hill again and again until evening.
            {n} pushed a heavy wagon all the way to town.
            {n} had marched for many miles with the others.
            It was midnight when they came home from the trip.
            {n} had picked berries from dawn until dark.
            {n} got no nap and went to bed late.
            {n} had jumped and hopped until {p} feet were sore.
        """),
    },
    "held_out": {
        "happy": lines("""
            {n} got the red bicycle {s} had wished for.
            Mom and {n} baked cookies and sang funny songs.
            {n} went down the water slide with {p} friends and laughed.
            Aunt May came to visit and brought a basket of sweets.
            {n} played with the baby rabbits in the sunshine.
            Today the circus came, and {n} was allowed to go.
            {n} and Dad flew a kite and then ate ice cream.
            The tooth fairy left a shiny coin for {n}.
            A new friend asked {n} to come over and play.
            {n} got a hug and a kiss from everybody in the family.
            The band played, and {n} danced with {p} grandma.
            {n} unpacked a present and found a puppy in it.
        """),
        "sad": lines("""
            {p} hamster died, and {n} buried it under the tree.
            {n} had to say goodbye to {p} best friend.
            {p} favorite toy fell into the river and was gone.
            {n} wanted to go to the fair, but {s} had to stay in bed.
            {p} grandmother was very sick in the hospital.
            The other children went to play and left {n} all alone.
            {n} looked for {p} lost puppy everywhere, but it was gone.
            {n} missed {p} mother so much.
            The little lamb was ill and died.
            {p} balloon popped, and there was no other one.
            {n} was not invited to the birthday party.
            {p} friend was gone, and the house was empty.
        """),
        "angry": lines("""
            {p} brother broke {p} new plane on purpose.
            A boy took {p} hat and would not give it back.
            {p} sister hit {n} and then said that {n} did it.
            The girls laughed at {p} picture and tore it.
            {p} friend ate all the candy and did not share.
            A big boy knocked over {p} snowman and ran away laughing.
            {p} cousin grabbed the book out of {p} hands.
            A girl pushed {o} off the swing.
            {p} brother cheated at cards again.
            The boy next door threw stones at {p} cat.
            {p} sister cut the hair of {p} doll without asking.
            The boys were mean and called {o} names.
        """),
        "scared": lines("""
            A big black bear stood in front of {p} tent.
            {n} heard a scratching noise in the dark hall.
            The lion roared, and the gate of the cage was open.
            {n} was all alone in the cave, and {p} lamp went out.
            A loud storm shook the house, and lightning hit a tree.
            {n} saw a monster in {p} dream.
            The bridge was high and shaky, and {n} looked down.
            {n} heard somebody walk in the attic at night.
            A crocodile swam toward {p} little boat.
            {n} got lost in the big dark woods.
            A mean dog barked and chased {n} down the street.
            A bat flew right at {p} face in the dark.
        """),
        "proud": lines("""
            {n} won the spelling prize.
            {n} cleaned the whole kitchen without help, and Dad said well done.
            {n} swam ten meters for the first time.
            The teacher showed {p} story to the whole class because it was so good.
            {n} got a medal for the best jump.
            {n} made a bowl of clay by {o}self.
            {n} learned to whistle after many tries.
            {n} was brave and saved the kitten from the well.
            {n} won the chess game against {p} dad.
            {n} played {p} violin on the stage, and everybody clapped.
            {n} built a strong bridge of blocks without any help.
            {n} got the best mark in the whole school.
        """),
        "tired": lines("""
            {n} had picked apples from morning until night.
            {n} did not sleep all night because of the noise.
            The walk home was very long, and {p} bag was heavy.
            {n} had jumped on the trampoline for hours.
            It was midnight, and {n} was still awake.
            {n} had worked in the field all day long.
            {n} ran the long race to the end, and {p} legs were heavy.
            They had traveled all day and half the night.
            {n} had pushed the heavy cart for many miles.
            {n} got up at five and had no nap.
            {n} had hiked over three hills that day.
            After a long day of swimming it was late at night.
        """),
    },
}

SIGNS = {
    "train": {
        "happy": lines("""
            {s} smiled a big smile.
            {s} clapped {p} hands and laughed.
            {s} hugged everybody.
            "Hooray!" {s} shouted.
            {s} jumped for joy.
            "This is the best day ever!" {s} said.
            {s} could not stop smiling.
            "Yay!" said {n}.
            {s} danced around the room.
            {s} giggled and hummed a tune.
            "I like it here!" {s} said and laughed.
            {p} eyes shone, and {s} smiled.
            {s} kissed Mom and thanked her.
            It was so much fun.
            {s} sang a merry little song.
        """),
        "sad": lines("""
            Tears ran down {p} face.
            {s} began to cry.
            {s} put {p} head on the table and cried softly.
            {s} did not want to play or eat.
            {s} cried into {p} pillow.
            A tear fell on {p} hand.
            {s} looked down and said nothing for a long time.
            "I miss the old days," {s} said in a low voice.
            Mom hugged {o} and dried {p} tears.
            {s} sobbed and sobbed.
            {p} chin dropped, and {p} eyes were wet.
            {s} stayed in {p} room and wept.
            {p} lips shook, and then the tears came.
            {s} felt empty inside.
            {s} sighed and looked out at the rain.
        """),
        "angry": lines("""
            {s} stamped {p} foot.
            {s} shouted, "Stop that!"
            {p} face turned red, and {s} yelled.
            "That is not fair!" {s} shouted.
            {s} slammed the door.
            {s} made a fist and frowned.
            "Give it back right now!" yelled {n}.
            {s} threw {p} cap on the floor.
            {s} crossed {p} arms and would not talk to them.
            "I hate that!" {s} screamed.
            {s} wanted to hit something.
            {s} growled like a bear and stamped off.
            "You had no right to do that!" said {n}.
            {s} kicked the wall.
            {s} pushed the table and glared.
        """),
        "scared": lines("""
            {s} hid under the blanket.
            {p} heart beat fast, and {p} knees shook.
            {s} screamed and ran away.
            {s} held Dad's hand very tight.
            "Help!" {s} cried.
            {s} did not dare to move.
            {s} began to shake all over.
            {s} closed {p} eyes and called for Mom.
            {s} was as white as a sheet.
            {s} crept behind the sofa and stayed there.
            {p} legs trembled.
            "Please do not hurt me!" {s} begged.
            {s} gasped and stepped back.
            {s} called for help as loud as {s} could.
            {s} ran home as fast as {s} could.
        """),
        "proud": lines("""
            "Look what I did!" {s} said.
            {s} stood up tall and showed it to everybody.
            "I did it all by myself!" said {n}.
            {s} held {p} head high.
            {s} could not wait to show {p} mom.
            "I can do it now!" {s} said.
            Everybody said, "Well done!"
            {s} told all {p} friends what {s} had done.
            {s} hung it on the wall for all to see.
            "Nobody helped me!" {s} said with a grin.
            {s} put the prize on the shelf.
            Mom and Dad said, "We knew you could do it!"
            {s} told the story of it to all the neighbors.
            {s} lifted {p} chin and bowed.
            "I am the best at this now!" said {n}.
        """),
        "tired": lines("""
            {s} yawned and rubbed {p} eyes.
            {p} eyes fell shut.
            {s} fell asleep on the sofa.
            "I want to go to bed," {s} said.
            {s} could not keep {p} eyes open.
            {s} lay down and slept at once.
            {s} yawned a big yawn.
            {s} wanted only {p} soft bed.
            {p} head sank onto the pillow.
            {s} could hardly stand.
            {p} arms and legs were so heavy.
            {s} sat down and began to snore.
            "Let me rest," {s} said and yawned.
            {s} fell into bed with {p} clothes on.
            {s} closed {p} eyes for a little while.
        """),
    },
    "held_out": {
        "happy": lines("""
            {s} laughed and sang all the way home.
            "I love it so much!" {s} said with a smile.
            {s} hopped up and down with joy.
            "What a lovely day!" said {n}.
        """),
        "sad": lines("""
            {s} sat by the window and cried.
            Big tears fell from {p} eyes.
            {s} hung {p} head, and {p} lip trembled.
            {s} sobbed for a long time.
        """),
        "angry": lines("""
            "Leave me alone!" {n} yelled.
            {s} frowned and kicked the chair.
            {s} stamped around the room and shouted.
            "You are so mean!" {s} shouted at them.
        """),
        "scared": lines("""
            {s} ran to Mom and hid behind her.
            {p} hands shook, and {s} could not speak.
            {s} pulled the blanket over {p} head.
            "Go away, please!" {s} whispered and shook.
        """),
        "proud": lines("""
            "I made it without any help!" {s} said.
            {s} showed it to everyone in the street.
            "See what I can do!" {s} told Grandpa.
            {s} stood in front of the class with {p} chin up.
        """),
        "tired": lines("""
            {s} yawned again and again.
            {s} went to bed without dinner and slept.
            {p} eyes closed before the story was over.
            "I need a nap," {s} said.
        """),
    },
}


def feelings(rng: random.Random, split: str) -> Iterator[Row]:
    causes = {label: cycle(shuffled(rng, CAUSES[split][label])) for label in FEELINGS}
    while True:
        for label in FEELINGS:
            parts = [next(causes[label])]
            if rng.random() < 0.75:
                parts.append(pick(rng, SIGNS[split][label]))
            if rng.random() < 0.5 or "{n}" not in parts[0]:
                parts.insert(0, pick(rng, [text for text in OPENERS if "{n}" in text or "{n}" in parts[0]]))
            who = child(rng, split)
            story = " ".join(sentence(part.format(**who)) for part in parts)
            question = pick(rng, FEELING_QUESTIONS).format(**who)
            yield {"instruction": question, "input": story, "output": label}


# ------------------------------------------------------------------------------------------- questions

QUESTION_TASKS = lines("""
    Read the story and answer the question.
    Answer the question about the story.
    Find the answer in the story.
    Here is a story and a question. What is the answer?
    Give a short answer to the question.
    Use the story to answer.
    Listen to the story, then answer.
    Look in the story for the answer.
""")

# {a} and {b} are two people, {t} a thing, {u} another thing, {w} a where. `?` lines: question = answer.
STORIES = {
    "train": """
        {a} found {t} {w}. {b} wanted to see it too.
        ? Who found {t}? = {a}
        ? What did {a} find? = {t}
        ? Where did {a} find it? = {w}

        {a} and {b} played {w}. {a} had {t}, and {b} had {u}.
        ? Where did they play? = {w}
        ? What did {a} have? = {t}
        ? What did {b} have? = {u}

        One day {a} hid {t} {w}. {b} looked for it all day.
        ? Where was it hidden? = {w}
        ? Who looked for it? = {b}
        ? What did {a} hide? = {t}
        ? Who hid it? = {a}

        {b} was sad. So {a} gave {b} {t}. Then they sat {w}.
        ? Who was sad? = {b}
        ? What did {b} get? = {t}
        ? Where did they sit? = {w}

        {a} saw {t} {w}. "How nice!" said {a}. But {b} did not see it.
        ? What did {a} see? = {t}
        ? Where was it? = {w}
        ? Who did not see it? = {b}

        There was {t} {w}. {a} picked it up and took it home to {b}.
        ? What was {w}? = {t}
        ? Who picked it up? = {a}
        ? Where was it? = {w}

        {a} slept {w}. In the morning {b} brought {t}.
        ? Who slept? = {a}
        ? Where did {a} sleep? = {w}
        ? What did {b} bring? = {t}
        ? Who came in the morning? = {b}

        {a} lost {t} {w}. {b} helped to look, and they found {u}.
        ? What did {a} lose? = {t}
        ? Where did {a} lose it? = {w}
        ? Who helped? = {b}
        ? What did they find? = {u}

        "Where is my friend?" asked {a}. The friend, {b}, was {w} with {t}.
        ? Where was {b}? = {w}
        ? What did {b} have? = {t}
        ? Who asked? = {a}

        {a} made {t} for {b}. {b} put it {w}.
        ? Who made it? = {a}
        ? What did {a} make? = {t}
        ? Where did {b} put it? = {w}

        It was raining. {a} waited {w}, and {b} came with {t}.
        ? Who waited? = {a}
        ? Where did {a} wait? = {w}
        ? What did {b} bring? = {t}

        {a} bought {t} at the shop. On the way home {a} met {b} {w}.
        ? What did {a} buy? = {t}
        ? Who met {b}? = {a}
        ? Where did they meet? = {w}

        {a} wanted {u}, but Mom bought {t}. {b} laughed.
        ? What did {a} want? = {u}
        ? What did Mom buy? = {t}
        ? Who laughed? = {b}

        A bird sat {w}. {a} fed it, and {b} drew it.
        ? Where did the bird sit? = {w}
        ? Who fed the bird? = {a}
        ? Who drew the bird? = {b}

        {a} cleaned the house and found {t}. It had been {w} for a year.
        ? Who cleaned the house? = {a}
        ? What did {a} find? = {t}
        ? Where had it been? = {w}

        {a} carried {t}, and {b} carried {u}. They walked to a tent that stood {w}.
        ? What did {a} carry? = {t}
        ? What did {b} carry? = {u}
        ? Where was the tent? = {w}

        {b} fell down {w}. {a} ran to help and gave {b} {t}.
        ? Who fell down? = {b}
        ? Who ran to help? = {a}
        ? Where did {b} fall down? = {w}
        ? What did {b} get? = {t}

        On Sunday {a} went to a fair and won {t}. {b} won nothing.
        ? Who won nothing? = {b}
        ? What did {a} win? = {t}
        ? Who won {t}? = {a}

        {a} sang a song {w}. {b} clapped and gave {a} {t}.
        ? Who sang a song? = {a}
        ? Where did {a} sing? = {w}
        ? Who clapped? = {b}
        ? What did {a} get? = {t}

        {b} painted {t}. {a} hung the picture {w}.
        ? What did {b} paint? = {t}
        ? Who painted it? = {b}
        ? Where did {a} hang the picture? = {w}

        The cat ran off with {t}. {a} chased the cat, and it stopped {w}.
        ? What did the cat take? = {t}
        ? Who chased the cat? = {a}
        ? Where did the cat stop? = {w}

        {a} was hungry and ate lunch {w}. {b} was not hungry and looked at {t}.
        ? Who was hungry? = {a}
        ? Where did {a} eat? = {w}
        ? What did {b} look at? = {t}

        Every night {a} dreamed of {t}. One night it was really there, {w}.
        ? What did {a} dream of? = {t}
        ? Who dreamed? = {a}
        ? Where was it one night? = {w}

        {a} told {b} a secret {w}. It was about {t}.
        ? Who told a secret? = {a}
        ? Where did {a} tell the secret? = {w}
        ? What was the secret about? = {t}

        {a} broke {t}. "I am sorry," said {a}. {b} was not angry and fixed it {w}.
        ? What did {a} break? = {t}
        ? Who fixed it? = {b}
        ? Who said sorry? = {a}
        ? Where was it fixed? = {w}

        Grandpa kept {t} {w}. {a} was allowed to hold it, and so was {b}.
        ? What did Grandpa keep? = {t}
        ? Where did he keep it? = {w}

        {a} is small, and {b} is tall. They live {w} and own {t}.
        ? Who is small? = {a}
        ? Who is tall? = {b}
        ? Where do they live? = {w}
        ? What do they own? = {t}

        {b} could not sleep. {a} told a story about {t} {w}.
        ? Who could not sleep? = {b}
        ? Who told a story? = {a}
        ? What was the story about? = {t}

        {a} forgot {t} {w}. The next day {b} had it.
        ? What did {a} forget? = {t}
        ? Where did {a} forget it? = {w}
        ? Who had it the next day? = {b}

        {a} looked for {u}, but there was only {t} {w}.
        ? What did {a} look for? = {u}
        ? Who looked for {u}? = {a}

        A dog lay {w}. It chewed {t}. {b} laughed at the dog.
        ? Where did the dog lie? = {w}
        ? What did the dog chew? = {t}
        ? Who laughed at the dog? = {b}

        {a} and {b} went for a walk. {b} rested {w}, and {a} picked up {t}.
        ? Who rested? = {b}
        ? What did {a} pick up? = {t}
        ? Where did {b} rest? = {w}

        {b} wrote a letter {w}. In the letter was {t} for {a}.
        ? Who wrote a letter? = {b}
        ? Where did {b} write? = {w}
        ? What was in the letter? = {t}

        {a} ran home, but {b} stayed {w} and played with {t}.
        ? Who ran home? = {a}
        ? Who stayed there? = {b}
        ? Where did {b} stay? = {w}
        ? What did {b} play with? = {t}

        {a} brought {t} to the party. {b} came late and brought {u}.
        ? Who came late? = {b}
        ? What did {a} bring? = {t}
        ? What did {b} bring? = {u}

        {a} knocked on the door. {b} opened it and held {t}.
        ? Who knocked? = {a}
        ? Who opened the door? = {b}
        ? What did {b} hold? = {t}

        {a} hummed a tune. {b} wanted to sleep {w}.
        ? Who hummed a tune? = {a}
        ? Who wanted to sleep? = {b}
        ? Where did {b} want to sleep? = {w}

        {a} climbed up, and {b} waited below. Up there was {t}.
        ? Who climbed up? = {a}
        ? Who waited below? = {b}
        ? What was up there? = {t}

        {b} cooked soup {w}, and {a} ate all of it.
        ? Who cooked soup? = {b}
        ? Who ate the soup? = {a}
        ? Where was the soup cooked? = {w}

        {a} asked for {t}. {b} said no and gave {a} {u}.
        ? Who asked for {t}? = {a}
        ? Who said no? = {b}
        ? What did {a} ask for? = {t}
        ? What did {a} get? = {u}

        {a} was late. {b} was early and waited {w}.
        ? Who was late? = {a}
        ? Who was early? = {b}
        ? Where did {b} wait? = {w}

        {a} likes rain, but {b} likes snow. They met {w}.
        ? Who likes rain? = {a}
        ? Who likes snow? = {b}
        ? Where did they meet? = {w}

        {a} threw {t}. {b} caught it and fell over.
        ? Who threw {t}? = {a}
        ? Who fell over? = {b}
        ? What was thrown? = {t}

        {a} pushed the cart, and {b} pulled it. They left it {w}.
        ? Who pushed the cart? = {a}
        ? Who pulled the cart? = {b}
        ? Where did they leave the cart? = {w}

        {a} swept the floor and found {t}. {b} cleaned the windows.
        ? Who swept the floor? = {a}
        ? Who cleaned the windows? = {b}
        ? What did {a} find? = {t}

        {b} won the game, and {a} lost. They played {w}.
        ? Who won the game? = {b}
        ? Who lost the game? = {a}
        ? Where did they play? = {w}

        {a} sells {t}. {b} came by and bought {u}.
        ? What does {a} sell? = {t}
        ? What did {b} buy? = {u}
        ? Who came by? = {b}

        {b} is shy, and {a} is brave. {a} keeps {t} {w}.
        ? Who is shy? = {b}
        ? Who is brave? = {a}
        ? What does {a} keep? = {t}
        ? Where does {a} keep it? = {w}

        {a} drew {t}, and {b} drew {u}.
        ? What did {a} draw? = {t}
        ? What did {b} draw? = {u}

        {b} laughed, but {a} cried. {a} had dropped {t} {w}.
        ? Who laughed? = {b}
        ? Who cried? = {a}
        ? What did {a} drop? = {t}
        ? Where did {a} drop it? = {w}

        {a} whistled, and a parrot came to sit {w}. It carried {t}.
        ? Who whistled? = {a}
        ? Where did the parrot sit? = {w}
        ? What did the parrot carry? = {t}

        {a} opened the bag. In it was {t}. "Oh!" said {b}, who stood {w}.
        ? What was in the bag? = {t}
        ? Who opened the bag? = {a}
        ? Where did {b} stand? = {w}
    """,
    "held_out": """
        {a} left {t} {w}. In the evening {b} brought it back.
        ? What did {a} leave? = {t}
        ? Where did {a} leave it? = {w}
        ? Who brought it back? = {b}

        {a} took {t} to school. {b} took {u}.
        ? What did {a} take to school? = {t}
        ? What did {b} take to school? = {u}

        Mom called {a} and {b}. {a} was {w}, and {b} came at once.
        ? Where was {a}? = {w}
        ? Who came at once? = {b}

        {b} had a cold and stayed in bed. {a} came to visit and brought {t}.
        ? Who had a cold? = {b}
        ? Who came to visit? = {a}
        ? What did {a} bring? = {t}

        {a} dug a hole {w} and put {t} in it.
        ? Who dug a hole? = {a}
        ? Where did {a} dig? = {w}
        ? What did {a} put in the hole? = {t}

        {a} and {b} had a race. {b} was first and got {t}. {a} rested {w}.
        ? Who was first? = {b}
        ? Where did {a} rest? = {w}
        ? What did {b} get? = {t}

        A frog sat {w} and looked at {t}. {a} saw the frog and smiled.
        ? Where did the frog sit? = {w}
        ? What did the frog look at? = {t}
        ? Who saw the frog? = {a}

        {b} read a book {w}. It was a book about {t}.
        ? Who read a book? = {b}
        ? Where did {b} read? = {w}
        ? What was the book about? = {t}

        {a} was thirsty and went to a tap {w}. {b} filled a cup.
        ? Who was thirsty? = {a}
        ? Where was the tap? = {w}
        ? Who filled a cup? = {b}

        Somebody took {t}. It was {b}! {a} saw it {w} at night.
        ? Who took {t}? = {b}
        ? What was taken? = {t}
        ? Where did {a} see it? = {w}

        {a} wished for {t}. The wish came true when {a} woke up {w}.
        ? What did {a} wish for? = {t}
        ? Who made a wish? = {a}
        ? Where did {a} wake up? = {w}

        {b} danced {w}, and {a} played the flute. A man gave them {t}.
        ? Who danced? = {b}
        ? Who played the flute? = {a}
        ? What did the man give them? = {t}
        ? Where did {b} dance? = {w}

        {a} washed {t} and {b} dried it. Then it lay {w}.
        ? What did {a} wash? = {t}
        ? Who dried it? = {b}
        ? Where did it lie? = {w}
    """,
}

WHERES = {
    "train": names("""
        in the garden, at the park, by the river, under the bridge, on the hill, behind the shed, in the
        barn, under the bed, on the roof, in the kitchen, by the lake, near the mill, in the forest, on the
        beach, at the zoo, behind the door, in the cave, under the table, next to the pond, in a box, at the
        station, on the stairs, in the attic, by the gate, in the grass, under a tree, on the farm, in the
        boat, near the fire, behind the school, in the snow, at the market, on the shelf, in the car, by the
        window, near the swing, in the mud, on the rug, under the sofa, at the pool, in the basement, on the
        train, beside the road, in the bus, behind the curtain, on the island, in the hall, near the fence,
        in the nest, at home, on the porch, in the tent, under the blanket, by the fireplace, in the shop,
        on a log, behind the bush, in the sand, next to the statue, at the bakery, in the bathroom, on the
        ship
    """),
    "held_out": names("""
        in the tower, by the sea, under the desk, on the wall, behind the house, in the field, at the
        castle, near the well, under a rock, on the bench, in the library, next to the church, in the woods,
        on the bridge, at the fair, behind the barn
    """),
}

# Many places, so that copying the place is easier to learn than knowing the list.
LANDMARKS = names("""
    tree, gate, shed, mill, pond, bush, statue, cart, wagon, ladder, tent, fence, box, bed, table, sofa,
    door, stove, tub, swing, slide, log, car, truck, boat, bus, basket, piano, cage, crib
""")
WHERES["train"] += [
    f"{where} the {mark}"
    for mark in LANDMARKS
    for where in ("near", "behind", "next to", "by", "under", "on")
    if f"{where} the {mark}" not in WHERES["train"]
]

THINGS = {
    "train": names("""
        a ball, a kite, a doll, a drum, a book, a cup, a key, a hat, a bag, a flower, a shell, a stone, a
        coin, a cake, an apple, a car, a bell, a ring, a lamp, a coat, a pencil, a basket, a feather, a nut,
        a balloon, a bike, a blanket, a bone, a broom, a bucket, a candle, a carrot, a clock, a crayon, a
        dress, an egg, a fan, a fish, a flag, a fork, a glass, a glove, a hammer, a jar, a jewel, a knife, a
        ladder, a leaf, a lemon, a letter, a mask, a melon, a mirror, a necklace, an orange, a pan, a paper,
        a peach, a pen, a phone, a picture, a pie, a pillow, a plate, a potato, a puppet, a puzzle, a radio,
        a ribbon, a robot, a rose, a sandwich, a seed, a shirt, a shoe, a shovel, a sock, a star, a stick, a
        sweater, a teddy, a ticket, a tomato, a towel, a toy, a trumpet, a wagon, a wallet, a watch, a
        whistle, a worm, a banana, an acorn, an umbrella, a pumpkin, a pot, a bowl, a bracelet, a cherry, a
        muffin, a badge, a barrel, a bean, a belt, a boot, a brick, a cape, a card, a cart, a chair, a comb,
        a cushion, a dish, a dragon, a duckling, a fiddle, a flute, a frog, a hook, a horn, a horse, a hose,
        a jacket, a kettle, a kitten, a lizard, a magnet, a mitten, a mug, a nail, a net, a note, a paddle,
        a pebble, a pin, a plum, a puppy, a purse, a racket, a rattle, a saddle, a saw, a seashell, a skirt,
        a sled, a snail, a spade, a sponge, a stool, a string, a tent, a torch, a turtle, a vase, a violin,
        a wand, a wheel, a wig, an ant, an anchor, an axe, an arrow
    """),
    "held_out": names("""
        a rope, a spoon, a bottle, a scarf, a crown, a brush, a cookie, a truck, a map, a button, a pear, a
        sword, a guitar, a diamond, a plane, a berry, a chain, a stamp, a helmet, an onion
    """),
}

# Beside the children's names of `people`.
CHARACTERS = {
    "train": names("""
        the fox, the bear, the king, the farmer, the mouse, the witch, Grandma, the rabbit, the baker, the
        duck, the giant, the man, the cat, the doctor, the fairy, the wolf, the bird, the nurse, the lion,
        the cook, the monkey, the pirate, the hen, the turtle, the dog, the maid, the soldier, the tiger,
        the elf, the painter, the sailor, the grandfather, the lady, the horse
    """),
    "held_out": names("""
        the queen, the pig, the teacher, the goat, the owl, the prince, the woman, the squirrel
    """),
}


def two(make: Callable[[], str]) -> tuple[str, str]:
    """Two values that share no word but articles."""
    first = make()
    while True:
        second = make()
        if not set(first.split()) & set(second.split()) - {"a", "an", "the"}:
            return first, second


def stories(split: str) -> list[tuple[str, str, str]]:
    """(story pattern, question, answer)"""
    found: list[tuple[str, str, str]] = []
    for block in STORIES[split].strip().split("\n\n"):
        story, *questions = lines(block)
        for line in questions:
            question, _, answer = line.removeprefix("? ").partition(" = ")
            found.append((story, question, answer))
    return found


def questions(rng: random.Random, split: str) -> Iterator[Row]:
    kinds = {kind: [x for x in stories(split) if kind(x[2])] for kind in (is_who, is_where, is_what)}
    patterns = {kind: cycle(shuffled(rng, found)) for kind, found in kinds.items()}
    children = [name for group in (GIRLS, BOYS) for name in group[split]]
    while True:
        for kind in kinds:
            story, question, answer = next(patterns[kind])

            def person() -> str:
                return pick(rng, children if rng.random() < 0.6 else CHARACTERS[split])

            a, b = two(person)
            t, u = two(lambda: pick(rng, THINGS[split]))
            slots = {"a": a, "b": b, "t": t, "u": u, "w": pick(rng, WHERES[split])}
            text = sentence(story.format(**slots))
            yield {
                "instruction": pick(rng, QUESTION_TASKS),
                "input": f"{text}\nQuestion: {sentence(question.format(**slots))}",
                "output": answer.format(**slots),
            }


def is_who(answer: str) -> bool:
    return answer in ("{a}", "{b}")


def is_where(answer: str) -> bool:
    return answer == "{w}"


def is_what(answer: str) -> bool:
    return answer in ("{t}", "{u}")


# ---------------------------------------------------------------------------------------------- advice

ADVICE_TASKS = lines("""
    Give good advice.
    What should I do?
    Tell me what to do.
    Say what helps.
    Be kind and give some advice.
    What is your advice?
    Help with this problem.
    Answer with one good tip.
""")

GREETINGS = lines("""
    Hello!
    Hi, I am {n}.
    Oh no!
    Oh dear!
    Please listen.
    My name is {n}.
    Good day!
    Hey, it is {n}.
""")
ENDINGS = ("What now?", "Can you help me?", "Please help!", "What would you do?", "Do you have a tip?")

# `=` lines: the advice; below it what people say who need it.
PROBLEMS = {
    "train": """
        = Eat some bread and soup.
        I am so hungry.
        My tummy rumbles.
        I had no breakfast today.
        My belly is empty.
        I have not eaten since last night.
        We worked all day and had no lunch.
        I could eat a whole pig.
        My little brother is hungry, and so am I.
        I want my dinner.
        I had nothing to eat all day.
        I smell food, and my mouth waters.
        The baby bear is hungry.

        = Drink a glass of water.
        I am so thirsty.
        My mouth is dry.
        I ran in the sun, and now my throat is dry.
        I have not had a drink all day.
        I want something to drink.
        The soup was so salty, and now I am thirsty.
        My tongue is dry like sand.
        My lips are dry, and I want a drink.
        I ate a salty fish. I need a drink.
        The poor cat is thirsty.
        My cup is empty, and I am thirsty.
        The walk made me thirsty.

        = Put on a warm coat.
        I am so cold.
        It is snowing, and I am freezing.
        My hands are like ice.
        The wind is icy today.
        I shiver in the snow.
        There is ice on the lake, and I want to go out.
        It is winter, and I have only a shirt on.
        My ears are cold.
        It is a cold, white morning.
        I am going out to make a snowman.
        The frost bites my nose.
        My toes are freezing in the wind.

        = Go to bed and sleep.
        I am so tired.
        I cannot keep my eyes open.
        I yawn and yawn.
        It is very late at night.
        The moon is up, and I am still awake.
        I was awake all night.
        I am too sleepy to play.
        My eyes fall shut.
        It is past my bedtime.
        I worked all day, and now I am tired.
        I need some rest.
        I have been up since four in the morning.

        = Take your umbrella.
        It is raining.
        There are dark clouds in the sky.
        I do not want to get wet.
        The rain is falling on my hat.
        Look, it is starting to rain.
        It rains cats and dogs.
        Drops fall from the gray sky.
        I have to walk home in the rain.
        The clouds are black. I think rain is coming.
        My hair gets wet in this rain.
        There will be a storm with rain today.
        It is wet outside.

        = Wash with soap and water.
        My hands are dirty.
        I fell in the mud.
        There is jam on my face.
        My feet are black with mud.
        I played in the dirt all day.
        There is paint all over my fingers.
        My hands are sticky.
        I rolled in the mud with the pigs.
        My face is covered with chocolate.
        I smell bad after digging in the dirt.
        My nose is black from the coal.
        I have glue on my hands.

        = Turn on the light.
        It is so dark in here.
        I cannot see in the dark.
        I am scared of the dark.
        The night is black, and I see nothing.
        It is too dark to read.
        The room is dark, and I am afraid.
        I am in the dark cellar.
        The sun went down, and I cannot see my book.
        The hall is dark at night.
        I cannot find the door in the dark.
        The lamp went out.
        It is dark, and there is a shadow on the wall.

        = Look for it under the bed.
        I lost my toy.
        I cannot find my ball.
        My doll is gone.
        Where is my teddy bear?
        I do not know where my book is.
        My hat is missing.
        I have lost my ring.
        Somewhere in my room is my red car, but where?
        I looked all over for my sock.
        I cannot find my other shoe.
        My favorite pen is gone.
        I lost the piece of my puzzle.

        = Go to the doctor.
        I am ill.
        My head hurts, and I feel hot.
        I have a bad cold.
        My tooth hurts so much.
        I have a fever and a red face.
        My throat hurts when I talk.
        I feel sick.
        My ear hurts.
        I cough all day and all night.
        I think my arm is broken.
        There are red spots on my skin.
        My stomach hurts very much.

        = Say that you are sorry.
        I was mean to my friend.
        I broke the cup of my mom.
        I told a lie.
        I pushed my sister, and she cried.
        I took her doll without asking.
        I made my brother cry.
        I hit a boy at school.
        I called my friend a bad name.
        I ate the cake of my brother.
        I tore her book.
        I was bad, and Mom is angry with me.
        I yelled at Grandma.

        = Say thank you.
        Grandma gave me a present.
        A man helped me with my bag.
        My friend gave me a cookie.
        Uncle Bill gave me a new kite.
        The teacher helped me to read.
        The girl shared her candy with me.
        Mom made a cake for me.
        Dad fixed my bike for me.
        I got a nice gift from my aunt.
        The boy found my hat and gave it to me.
        The lady gave me a flower.
        My sister let me play with her train.

        = Find a friend to play with.
        I am all alone.
        I feel lonely.
        Nobody plays with me.
        I have no one to talk to.
        My sister is at school, and I am alone at home.
        It is no fun to play alone.
        I am new here and know nobody.
        I sit alone on the bench.
        I wish I had somebody to play with.
        I have a ball, but nobody to throw it to.
        Everybody went away and left me here.
        I am bored with playing by myself.

        = Ask Dad to fix it.
        My toy is broken.
        The wheel came off my bike.
        The chair has only three legs now.
        My train does not run anymore.
        The roof has a hole.
        My drum is broken.
        The door of the doll house fell off.
        My robot does not move.
        The swing is broken.
        My kite is torn.
        The leg of the table is loose.
        The clock stopped and does not tick.

        = Stand on a chair.
        I cannot reach the shelf.
        The cookie jar is too high for me.
        I am too small to see out of the window.
        The book is up on the top shelf.
        The cup is too high up.
        I cannot reach the top of the tree to hang the star.
        My arms are too short to get the jar.
        I am not tall enough to reach the bell.
        The clock hangs too high for me.
        Mom put the candy up high.
        The toy is on top of the closet.
        I cannot get the hat from the hook. It is too high.

        = Open it with a key.
        The door is locked.
        I cannot open the chest.
        I cannot get into the house.
        The gate is shut with a lock.
        The treasure box is locked.
        There is a lock on the little box.
        We are locked out.
        I want to open the old locked door.
        The garden gate will not open.
        There is a locked room in the tower.
        The lock on my diary is shut.
        The cage is locked.

        = Water the plants.
        The flowers are dry.
        My plant looks sad and brown.
        It has not rained, and the roses hang their heads.
        The little seeds do not grow.
        The garden is dry.
        The leaves of my tree are falling in the heat.
        I planted some beans today.
        My tulips are thirsty.
        The vegetables in the garden are dry.
        The ground around the tomatoes is dry as sand.
        The grass is brown and dry.
        I put seeds into the pot.

        = Clean up the room.
        There are toys all over the floor.
        My room is a mess.
        I cannot walk because of all the blocks.
        My clothes lie everywhere.
        There is trash on the floor.
        My desk is full of old paper.
        Mom is angry about the mess.
        I spilled a box of crayons on the floor.
        There is dust in every corner.
        We played, and now the house is a mess.
        All my books lie on the carpet.
        The kitchen is messy.

        = Run away and call for help.
        There is a fire in the barn.
        A wolf is coming.
        I see smoke in the house.
        A big bear runs after me.
        There is a thief in the house.
        A lion is out of its cage.
        The house is on fire.
        A monster is at the door.
        A mean bull runs at us.
        There is a snake in the grass.
        The dragon is awake and angry.
        I see a crocodile in the river.
    """,
    "held_out": """
        = Eat some bread and soup.
        I am as hungry as a wolf.
        My tummy is empty and makes noises.
        I did not eat any lunch.
        I had no food this morning.

        = Drink a glass of water.
        I am very thirsty after the race.
        I need something to drink.
        My throat is so dry.
        I have a dry mouth from the dust.

        = Put on a warm coat.
        I am freezing in this snow.
        It is icy, and I feel cold.
        Brr, the winter wind is so cold.
        My arms shiver from the cold.

        = Go to bed and sleep.
        I am sleepy and I yawn.
        It is midnight, and I am tired.
        I did not sleep last night.
        My eyes want to close.

        = Take your umbrella.
        It is a rainy day, and I have to go out.
        Big drops of rain fall on my head.
        I see gray rain clouds over the town.
        I got wet on the way to school.

        = Wash with soap and water.
        My fingers are dirty and sticky.
        I have mud on my nose.
        My arms are covered with dirt.
        There is honey all over my hands.

        = Turn on the light.
        I cannot see anything in this dark room.
        It is dark, and I am scared.
        The attic is very dark.
        It got dark, and I cannot see my toys.

        = Look for it under the bed.
        I lost my little train.
        My toy is missing.
        Where is my blue drum?
        I cannot find my scarf.

        = Go to the doctor.
        I feel very ill.
        My leg hurts a lot.
        I am sick, and I have a fever.
        My back hurts, and I feel bad.

        = Say that you are sorry.
        I hit my brother, and he cried.
        I broke the toy of my friend.
        I was mean and made her sad.
        I lied to my mom.

        = Say thank you.
        My aunt gave me a new ball.
        A kind woman helped me.
        My friend shared his apple with me.
        I got a lovely gift from Grandpa.

        = Find a friend to play with.
        I am lonely and have nobody.
        I have to play all alone.
        There is no one here to play with me.
        I am at the park all alone.

        = Ask Dad to fix it.
        My car lost a wheel and is broken.
        The handle of the door fell off.
        My new toy stopped working.
        The fence is broken.

        = Stand on a chair.
        The jam is on the high shelf, and I am too small.
        I cannot reach the cup up there.
        I am too short to reach the lamp.
        The box is up high, and I cannot get it.

        = Open it with a key.
        The box has a lock, and I cannot open it.
        I am locked out of the house.
        The chest is locked.
        The barn door is locked.

        = Water the plants.
        The roses in the garden are dry.
        My little plants do not grow.
        The leaves of my flower are brown.
        I put some seeds into the ground.

        = Clean up the room.
        The floor is full of toys.
        There is such a mess in here.
        My socks and shirts lie all over the room.
        My bedroom is very messy.

        = Run away and call for help.
        A tiger is coming.
        Fire! The shed is burning.
        A robber is in our garden.
        A hungry wolf is chasing me.
    """,
}


def problems(split: str) -> dict[str, list[str]]:
    """advice -> problems"""
    blocks = [lines(block) for block in PROBLEMS[split].strip().split("\n\n")]
    return {advice[2:]: said for advice, *said in blocks}


def advice(rng: random.Random, split: str) -> Iterator[Row]:
    table = problems(split)
    order = {answer: cycle(shuffled(rng, said)) for answer, said in table.items()}
    while True:
        for answer, said in order.items():
            parts = [next(said)]
            if rng.random() < 0.4:
                parts.append(next(said))
            if rng.random() < 0.5:
                parts.insert(0, pick(rng, GREETINGS).format(**child(rng, split)))
            if rng.random() < 0.4:
                parts.append(pick(rng, ENDINGS))
            yield {"instruction": pick(rng, ADVICE_TASKS), "input": " ".join(parts), "output": answer}


# -------------------------------------------------------------------------------------------- writing

TASKS: dict[str, Callable[[random.Random, str], Iterator[Row]]] = {
    "feelings": feelings,
    "questions": questions,
    "advice": advice,
}


def rows(task: str, split: str) -> list[Row]:
    """The rows of one file; no two have the same input."""
    rng = random.Random(f"{SEED} {task} {split}")
    wanted = (TRAIN_ROWS if split == "train" else HELD_OUT_ROWS)[task]
    found: dict[str, Row] = {}
    for row in TASKS[task](rng, split):
        found.setdefault(row["input"], row)
        if len(found) == wanted:
            break
    return shuffled(rng, list(found.values()))


def write(folder: Path) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task in TASKS:
        for split in ("train", "held_out"):
            path = folder / f"{task}.{split}.jsonl"
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(task, split))
            path.write_text(text, encoding="utf-8", newline="\n")
            written.append(path)
    return written


if __name__ == "__main__":
    for path in write(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER):
        print(f"{path}: {path.stat().st_size:,} bytes")
