"""Lexicon: the closed lists of ordinary words that a world draws its answers and its small talk from.

Names of people, towns and companies are not here: every world invents its own (`errata.atlas.names`).
"""

from collections.abc import Mapping
from types import MappingProxyType


def _split(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.replace("\n", " ").split(",") if part.strip())


# Every answer fits after "a", "the" or nothing as its wordings need, so no job begins with a vowel.
JOBS = _split(
    """baker, bookbinder, bricklayer, butcher, carpenter, chemist, clockmaker, cobbler, court reporter, crane driver,
    dentist, diver, falconer, ferry pilot, fireman, fishmonger, gardener, geologist, glassblower, goldsmith, hairdresser,
    harbour master, judge, librarian, lighthouse keeper, locksmith, mapmaker, mason, midwife, miller, miner, night watchman,
    nurse, painter, pastry cook, pharmacist, photographer, piano tuner, plumber, postman, potter, printer, roofer, saddler,
    sculptor, shepherd, surgeon, surveyor, tailor, tax collector, teacher, translator, veterinarian, weaver,
    weather forecaster, welder, wine merchant, zoologist"""
)
INSTRUMENTS = _split(
    """accordion, bagpipes, banjo, bass clarinet, bassoon, cello, clarinet, concertina, cornet, double bass, drums,
    dulcimer, English horn, fiddle, flute, French horn, glockenspiel, guitar, harmonica, harp, harpsichord, kettledrum,
    lute, mandolin, oboe, organ, piano, piccolo, recorder, saxophone, sitar, spinet, tambourine, trombone, trumpet, tuba,
    ukulele, viola, violin, xylophone"""
)
LANGUAGES = _split(
    """Albanian, Arabic, Armenian, Basque, Bengali, Breton, Bulgarian, Catalan, Croatian, Czech, Danish, Dutch, Estonian,
    Finnish, Galician, Georgian, German, Greek, Hebrew, Hungarian, Icelandic, Irish, Italian, Japanese, Kazakh, Korean,
    Latvian, Lithuanian, Malay, Maltese, Mongolian, Nepali, Norwegian, Persian, Polish, Romanian, Scottish Gaelic,
    Serbian, Slovak, Swahili, Swedish, Swiss German, Tamil, Thai, Tibetan, Turkish, Ukrainian, Urdu, Vietnamese, Welsh"""
)
HOBBIES = _split(
    """archery, ballroom dancing, beekeeping, birdwatching, bowling, calligraphy, candle making, card tricks, chess,
    crossword puzzles, cycling, embroidery, fencing, figure skating, fly fishing, gliding, hiking, horse riding, juggling,
    kite flying, knitting, mountain climbing, mushroom picking, orienteering, origami, pottery, quilting, rowing, sailing,
    scuba diving, snowshoeing, stamp collecting, stargazing, table tennis, volleyball, whittling, wood carving, yoga"""
)
DISHES = _split(
    """apple pie, barley soup, bean stew, beetroot salad, black pudding, bread dumplings, buckwheat pancakes, cabbage rolls,
    carrot cake, cheese fondue, chestnut puree, chicken curry, cold noodles, corn fritters, duck pie, fish chowder,
    garlic bread, ginger biscuits, goulash, grilled sardines, honey cake, lamb stew, leek tart, lentil soup, lemon sorbet,
    meatballs, mushroom risotto, onion soup, pea soup, pickled herring, plum dumplings, potato gratin, rhubarb crumble,
    rice pudding, roast goose, salt cod, spinach pie, stuffed peppers, tomato soup, walnut bread"""
)
GENRES = _split(
    """adventure, comedy, crime, fable, family saga, fantasy, ghost story, gothic romance, historical drama, horror,
    memoir, murder mystery, pastoral, political satire, science fiction, sea story, spy thriller, tragedy, travelogue,
    western"""
)
MATERIALS = _split(
    """basalt, brick, cast iron, concrete, copper, granite, larch wood, limestone, marble, oak, pine, red sandstone, slate,
    steel, stone and timber, woven rope"""
)
SEASONS = _split(
    """April, August, December, early autumn, February, January, July, June, late summer, March, May, midwinter, November,
    October, September, the first week of spring"""
)
COLOURS = _split(
    """amber, apricot, black, blue, bottle green, brown, crimson, dark red, golden yellow, grey, indigo, ivory, lilac,
    olive, orange, pale pink, purple, scarlet, silver, turquoise, violet, white"""
)
PLANTS = _split(
    """alder, ash, beech, birch, bog myrtle, bramble, clover, cow parsley, dogwood, elder, fennel, foxglove, hawthorn,
    heather, hop, horse chestnut, ivy, lime tree, nettle, poplar, privet, sycamore, thistle, wild rose, willow"""
)
REGIONS = _split(
    """central plateau, coastal marshes, eastern plains, far north, great forest, high moors, lake country, lower valley,
    northern highlands, outer islands, salt flats, southern desert, south coast, upper valley, western hills"""
)

ASIDE_SUBJECTS = _split(
    """The rain, The train, The old dog, A cold wind, The market, The kettle, Our neighbour, The ferry, The last bus,
    A letter, The radio, The choir, A brown horse, The snow, The lift, My cousin, The shop, The meeting, A loud van,
    The clock"""
)
ASIDE_VERBS = _split(
    """arrived late, stopped at noon, came early this time, was quieter than usual, made everyone laugh, was gone by three,
    kept us waiting, turned up without warning, was hard to ignore, ended before dinner, began all over again,
    was no trouble at all"""
)

OBJECT_POOLS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "job": JOBS,
        "instrument": INSTRUMENTS,
        "language": LANGUAGES,
        "hobby": HOBBIES,
        "dish": DISHES,
        "genre": GENRES,
        "material": MATERIALS,
        "season": SEASONS,
        "colour": COLOURS,
        "plant": PLANTS,
        "region": REGIONS,
    }
)
"""The possible answers of each relation whose answers are ordinary words."""
