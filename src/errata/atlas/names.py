"""Names: invented names of people, towns, companies and things, none of which a seed gives twice.

Names are put together from parts, so that many of them share a part: people share first names and surnames,
towns share words ("Upper Tarn", "Port Tarn"), companies share what they are ("Tarn Mills", "Osk Mills").
"""

from random import Random

_ONSETS = "B Br C Ch D Dr F Fl G Gr H J K Kl L M N P Pr Qu R S Sh Sk St T Th Tr V W Y Z".split()
_VOWELS = "a e i o u ai ea ie ou".split()
_MIDDLES = "b d f g k l ld ll m mm n nd nn r rd rr rt s ss st t v z".split()
_FIRST_ENDINGS = "a an ar e el en er i ia in is o on or us y".split()
_LAST_ENDINGS = "ack ard ell en er erby ett ick ing man oft ond ow ridge sen ski son stock well wood".split()
_PLACE_ENDINGS = "bury by dale fell ford gate ham holm mere minster mouth stead ton wick".split()

_TOWN_FRONTS = ("Upper", "Lower", "Port", "Saint", "New", "East")
_COMPANY_KINDS = ("Mills", "Shipping", "Press", "Insurance", "Motors", "and Sons", "Brewery", "Steelworks")


class Names:
    """A source of invented names: the same seed gives the same names in the same order, and no part comes twice."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)
        self._used: set[str] = set()

    def _part(self, endings: list[str]) -> str:
        while True:
            choose = self._random.choice
            part = choose(_ONSETS) + choose(_VOWELS) + choose(_MIDDLES) + choose(endings)
            if part not in self._used:
                self._used.add(part)
                return part

    def firsts(self, count: int) -> list[str]:
        """Parts that sound like first names."""
        return [self._part(_FIRST_ENDINGS) for _ in range(count)]

    def lasts(self, count: int) -> list[str]:
        """Parts that sound like surnames."""
        return [self._part(_LAST_ENDINGS) for _ in range(count)]

    def people(self, count: int, firsts: list[str], lasts: list[str]) -> list[str]:
        """Different pairs of a first name and a surname; every part is used about equally often."""
        pairs: dict[str, None] = {}
        deck = self._random.sample(lasts, len(lasts))
        drawn = 0
        while len(pairs) < count:
            name = f"{firsts[len(pairs) % len(firsts)]} {deck[drawn % len(deck)]}"
            drawn += 1
            if name not in self._used:
                pairs[name] = None
                self._used.add(name)
        names = list(pairs)
        self._random.shuffle(names)
        return names

    def towns(self, count: int) -> tuple[str, ...]:
        """Towns; about half of them are two words, and two or three share each second word."""
        cores = [self._part(_PLACE_ENDINGS) for _ in range(count * 2 // 3)]
        extra = [f"{self._random.choice(_TOWN_FRONTS)} {core}" for core in cores[: count - len(cores)]]
        return tuple(cores + extra)

    def companies(self, count: int) -> tuple[str, ...]:
        """Companies: an invented owner and one of eight kinds of business."""
        return tuple(f"{self._part(_LAST_ENDINGS)} {_COMPANY_KINDS[i % len(_COMPANY_KINDS)]}" for i in range(count))

    def things(self, count: int, pattern: str) -> list[str]:
        """Named things, `pattern` saying what they are: "{} Bridge", "Lake {}"."""
        return [pattern.format(self._part(_FIRST_ENDINGS)) for _ in range(count)]
