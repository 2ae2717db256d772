"""Short questions with known answers, of five kinds, made and graded by code.

The same numbers and words in the same order everywhere: a label belongs to a prompt for good.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from corevital.calibration import grading

SEED: Final = 20260101
PER_KIND: Final = 180

CAPITALS: Final = """
Afghanistan:Kabul Albania:Tirana Algeria:Algiers Angola:Luanda Argentina:Buenos_Aires
Armenia:Yerevan Australia:Canberra Austria:Vienna Azerbaijan:Baku Bangladesh:Dhaka
Belarus:Minsk Belgium:Brussels Bolivia:Sucre|La_Paz Botswana:Gaborone Brazil:Brasilia|Brasília
Bulgaria:Sofia Cambodia:Phnom_Penh Cameroon:Yaounde|Yaoundé Canada:Ottawa Chad:N'Djamena
Chile:Santiago China:Beijing Colombia:Bogota|Bogotá Croatia:Zagreb Cuba:Havana Cyprus:Nicosia
Denmark:Copenhagen Ecuador:Quito Egypt:Cairo Estonia:Tallinn Ethiopia:Addis_Ababa Fiji:Suva
Finland:Helsinki France:Paris Georgia:Tbilisi Germany:Berlin Ghana:Accra Greece:Athens
Guatemala:Guatemala_City Hungary:Budapest Iceland:Reykjavik|Reykjavík India:New_Delhi
Indonesia:Jakarta Iran:Tehran Iraq:Baghdad Ireland:Dublin Israel:Jerusalem Italy:Rome
Jamaica:Kingston Japan:Tokyo Jordan:Amman Kazakhstan:Astana Kenya:Nairobi Kuwait:Kuwait_City
Laos:Vientiane Latvia:Riga Lebanon:Beirut Libya:Tripoli Lithuania:Vilnius
Madagascar:Antananarivo Malaysia:Kuala_Lumpur Mali:Bamako Malta:Valletta Mexico:Mexico_City
Mongolia:Ulaanbaatar|Ulan_Bator Morocco:Rabat Mozambique:Maputo Namibia:Windhoek
Nepal:Kathmandu Netherlands:Amsterdam New_Zealand:Wellington Nicaragua:Managua Nigeria:Abuja
Norway:Oslo Oman:Muscat Pakistan:Islamabad Paraguay:Asuncion|Asunción Peru:Lima
Philippines:Manila Poland:Warsaw Portugal:Lisbon Qatar:Doha Romania:Bucharest Russia:Moscow
Rwanda:Kigali Senegal:Dakar Serbia:Belgrade Slovakia:Bratislava Slovenia:Ljubljana
Somalia:Mogadishu South_Korea:Seoul Spain:Madrid Sudan:Khartoum Sweden:Stockholm
Switzerland:Bern|Berne Syria:Damascus Tanzania:Dodoma Thailand:Bangkok Tunisia:Tunis
Turkey:Ankara Uganda:Kampala Ukraine:Kyiv|Kiev Uruguay:Montevideo Uzbekistan:Tashkent
Venezuela:Caracas Vietnam:Hanoi Yemen:Sanaa|Sana'a Zambia:Lusaka Zimbabwe:Harare
"""
SYMBOLS: Final = """
H:hydrogen He:helium Li:lithium Be:beryllium B:boron C:carbon N:nitrogen O:oxygen F:fluorine
Ne:neon Na:sodium Mg:magnesium Al:aluminum|aluminium Si:silicon P:phosphorus S:sulfur|sulphur
Cl:chlorine Ar:argon K:potassium Ca:calcium Ti:titanium Cr:chromium Mn:manganese Fe:iron Co:cobalt
Ni:nickel Cu:copper Zn:zinc As:arsenic Br:bromine Kr:krypton Ag:silver Sn:tin I:iodine Xe:xenon
Ba:barium W:tungsten Pt:platinum Au:gold Hg:mercury Pb:lead Bi:bismuth Rn:radon Ra:radium U:uranium
Pu:plutonium
"""
CONTINENTS: Final = """
Algeria:Africa Argentina:South_America Australia:Australia|Oceania Austria:Europe
Brazil:South_America Bulgaria:Europe Cambodia:Asia Canada:North_America Chad:Africa
Chile:South_America China:Asia Colombia:South_America Croatia:Europe Cuba:North_America
Denmark:Europe Egypt:Africa Fiji:Oceania Finland:Europe France:Europe Ghana:Africa Greece:Europe
Honduras:North_America India:Asia Iran:Asia Iraq:Asia Japan:Asia Kenya:Africa Laos:Asia
Latvia:Europe Mali:Africa Mexico:North_America Mongolia:Asia Nepal:Asia Nigeria:Africa Norway:Europe
Panama:North_America Peru:South_America Poland:Europe Portugal:Europe Senegal:Africa Spain:Europe
Suriname:South_America Tanzania:Africa Thailand:Asia Tonga:Oceania Uganda:Africa
Uruguay:South_America Vietnam:Asia Yemen:Asia Zambia:Africa
"""
WORDS: Final = """
apple anchor autumn balance banana basket beacon blanket bottle breeze bridge bright bronze butter
button camera candle canyon carpet castle cattle cereal chapel cherry circle clever closet coffee
copper corner cotton cradle crayon cricket curtain dancer danger desert dinner doctor dragon drawer
eagle easel effort engine fabric falcon family feather fiddle finger flavor flower forest fossil
friend galaxy garden garlic ginger goblin gravel guitar hammer harbor helmet hollow honest hunter
island jacket jigsaw jungle kettle kitten ladder lantern lemon letter lizard magnet marble market
meadow mirror monkey mother muffin museum napkin needle nickel number oatmeal object office orange
orchid oxygen oyster paddle palace parcel parrot pebble pencil pepper picnic pillow planet pocket
potato prince puddle puzzle quartz rabbit raisin ribbon river rocket saddle salmon school season
shadow shovel silver sister sketch spider spring square statue stormy street summer sunset tablet
temple thread ticket timber tomato tunnel turtle valley velvet violin walnut window winter wizard
wonder yellow zebra zipper
"""

OPPOSITES: Final = """
above:below accept:refuse|reject|decline after:before alive:dead always:never ancient:modern
arrive:depart|leave asleep:awake backward:forward beautiful:ugly begin:end|finish best:worst
better:worse big:small|little birth:death bitter:sweet black:white bottom:top brave:cowardly|afraid
bright:dark|dim|dull broad:narrow buy:sell cheap:expensive clean:dirty clever:stupid|foolish|dumb
close:open|far cold:hot|warm come:go correct:wrong|incorrect cruel:kind dangerous:safe
dark:light|bright day:night deep:shallow difficult:easy|simple dry:wet early:late east:west
easy:hard|difficult empty:full enemy:friend enter:exit|leave even:odd evening:morning
everything:nothing expand:contract|shrink export:import fail:succeed|pass false:true fast:slow
female:male few:many first:last forget:remember found:lost freeze:melt|thaw|boil front:back
future:past gain:lose|loss generous:selfish|stingy|greedy gentle:rough|harsh give:take|receive
good:bad|evil guilty:innocent happy:sad|unhappy hard:soft|easy hate:love heavy:light high:low
hot:cold husband:wife inside:outside interesting:boring|dull king:queen large:small|little laugh:cry
lazy:hardworking|active|diligent leader:follower left:right lend:borrow less:more loose:tight
loud:quiet|soft|silent major:minor maximum:minimum near:far noisy:quiet|silent north:south
old:new|young out:in parent:child peace:war permanent:temporary plural:singular poor:rich|wealthy
positive:negative possible:impossible private:public pull:push question:answer quick:slow
raise:lower real:fake|imaginary rise:fall|set rough:smooth sharp:blunt|dull shorten:lengthen
sick:healthy|well sink:float start:stop|end|finish strong:weak summer:winter sunny:cloudy|rainy
tall:short thick:thin together:apart truth:lie|falsehood|false ugly:beautiful|pretty up:down
useful:useless victory:defeat visible:invisible wide:narrow wild:tame win:lose
wise:foolish|unwise|stupid yes:no young:old
"""
PASTS: Final = """
begin:began bite:bit blow:blew break:broke bring:brought build:built buy:bought call:called
catch:caught choose:chose clean:cleaned come:came cook:cooked dance:danced dig:dug draw:drew
drink:drank drive:drove eat:ate fall:fell feed:fed feel:felt fight:fought find:found fly:flew
forget:forgot freeze:froze get:got give:gave go:went grow:grew hang:hung hear:heard help:helped
hide:hid hold:held hop:hopped jump:jumped keep:kept know:knew laugh:laughed lead:led leave:left
lend:lent lose:lost make:made meet:met open:opened paint:painted pay:paid play:played ride:rode
ring:rang rise:rose run:ran say:said see:saw sell:sold send:sent shake:shook shine:shone|shined
shoot:shot sing:sang sink:sank sit:sat sleep:slept smile:smiled speak:spoke spend:spent stand:stood
steal:stole stick:stuck stop:stopped swim:swam take:took teach:taught tear:tore tell:told
think:thought throw:threw try:tried wake:woke walk:walked wash:washed wear:wore win:won work:worked
write:wrote
"""
BY_SIZE: Final = """
atom bacterium flea ant ladybug coin walnut mouse apple hamster hat cat football turkey dog goat
chair wolf table lion cow horse rhinoceros car elephant bus whale house church stadium village
mountain moon planet star galaxy
"""


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt, the answers that count as right, and worked examples of the same form."""

    kind: str
    prompt: str
    answers: tuple[str, ...]
    examples: tuple[tuple[str, str], ...]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The prompt as a chat, after its examples."""
        asked = (*self.examples, (self.prompt, ""))
        turns = [
            {"role": role, "content": text}
            for turn in asked
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]
        return turns[:-1]


def questions(per_kind: int = PER_KIND) -> list[Question]:
    """All questions, kind by kind; no prompt occurs twice."""
    return [question for kind in KINDS for question in _distinct(kind, per_kind)]


def is_right(question: Question, reply: str) -> bool:
    """Whether ``reply`` holds one of the accepted answers, as words or numbers of their own."""
    return grading.is_right(reply, question.answers)


def _distinct(kind: str, count: int) -> Iterator[Question]:
    rng = random.Random(f"{SEED}:{kind}")
    seen: set[str] = set()
    while len(seen) < count:
        form = rng.choice(KINDS[kind])
        prompt, answers = form.make(rng)
        if prompt not in seen:
            seen.add(prompt)
            yield Question(kind, prompt, answers, form.examples)


def _table(text: str) -> list[tuple[str, tuple[str, ...]]]:
    rows = (entry.split(":") for entry in text.split())
    return [
        (name.replace("_", " "), tuple(answers.replace("_", " ").split("|")))
        for name, answers in rows
    ]


@dataclass(frozen=True, slots=True)
class _Form:
    """Questions of one form: how one is made, and the worked examples before each."""

    make: Callable[[random.Random], tuple[str, tuple[str, ...]]]
    examples: tuple[tuple[str, str], ...]


def _looked_up(template: str, table: str, examples: tuple[str, ...]) -> _Form:
    """Questions from a table; the names in ``examples`` are its examples and never asked."""
    rows = _table(table)
    known = dict(rows)
    asked = [row for row in rows if row[0] not in examples]

    def make(rng: random.Random) -> tuple[str, tuple[str, ...]]:
        name, answers = rng.choice(asked)
        return template.format(name), answers

    return _Form(make, tuple((template.format(name), known[name][0]) for name in examples))


def _sum(rng: random.Random) -> tuple[str, tuple[str, ...]]:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    return f"What is {a} + {b}?", (str(a + b),)


def _difference(rng: random.Random) -> tuple[str, tuple[str, ...]]:
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    return f"What is {a + b} - {b}?", (str(a),)


def _larger(rng: random.Random) -> tuple[str, tuple[str, ...]]:
    names = BY_SIZE.split()
    a, b = rng.sample(range(len(names)), 2)
    return f"Which is larger, {names[a]} or {names[b]}?", (names[max(a, b)],)


def _copy(rng: random.Random) -> tuple[str, tuple[str, ...]]:
    count = rng.randint(2, 9)
    if rng.random() < 0.5:
        text = " ".join(rng.choices(WORDS.split(), k=count))
    else:
        text = " ".join(str(rng.randint(1, 99)) for _ in range(count))
    return f"Repeat exactly: {text}", (text,)


KINDS: Final[dict[str, tuple[_Form, ...]]] = {
    "fact": (
        _looked_up(
            "What is the capital of {}?",
            CAPITALS,
            ("Hungary", "Thailand", "Chile", "Ghana", "Canada"),
        ),
        _looked_up(
            "Which chemical element has the symbol {}?", SYMBOLS, ("Cr", "S", "Sn", "Li", "Rn")
        ),
        _looked_up(
            "On which continent is {}?",
            CONTINENTS,
            ("Poland", "Nepal", "Zambia", "Colombia", "Canada"),
        ),
    ),
    "word": (
        _looked_up(
            "What is the opposite of {}?", OPPOSITES, ("tall", "accept", "truth", "dry", "enter")
        ),
        _looked_up(
            "What is the past tense of {}?", PASTS, ("bite", "jump", "teach", "cook", "sing")
        ),
    ),
    "arithmetic": (
        _Form(
            _sum,
            tuple((f"What is {a} + {b}?", str(a + b)) for a, b in ((3, 14), (13, 5), (16, 2))),
        ),
        _Form(
            _difference,
            tuple((f"What is {a} - {b}?", str(a - b)) for a, b in ((26, 13), (17, 1), (31, 14))),
        ),
    ),
    "comparison": (
        _Form(
            _larger,
            (
                ("Which is larger, bee or sheep?", "sheep"),
                ("Which is larger, cathedral or spoon?", "cathedral"),
                ("Which is larger, bicycle or ship?", "ship"),
                ("Which is larger, sheep or bee?", "sheep"),
                ("Which is larger, continent or bicycle?", "continent"),
            ),
        ),
    ),
    "copy": (
        _Form(
            _copy,
            (
                ("Repeat exactly: mountain pear 12", "mountain pear 12"),
                ("Repeat exactly: 7 81 30", "7 81 30"),
                ("Repeat exactly: tulip raven tulip engine", "tulip raven tulip engine"),
            ),
        ),
    ),
}
