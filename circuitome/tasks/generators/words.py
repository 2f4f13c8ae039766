"""Word lists that the generators draw from. Each tokenizer uses those that are one token behind a space."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MALE_NAMES = _words("""
    John James Robert Michael William David Richard Joseph Thomas Charles Christopher Daniel Matthew Anthony Mark
    Donald Steven Paul Andrew Joshua Kenneth Kevin Brian George Edward Ronald Timothy Jason Jeffrey Ryan Jacob Gary
    Nicholas Eric Jonathan Stephen Larry Justin Scott Brandon Benjamin Samuel Gregory Frank Patrick Raymond Jack Dennis
    Peter Aaron Adam Nathan Henry Simon Martin Arthur Walter Philip Luke Oliver Harry Fred Roger Carl Albert
    Louis Howard Ben Tom Tim Bob Jim Joe Dan Greg Keith Neil Ian Hugh Ralph Victor
""")

FEMALE_NAMES = _words("""
    Mary Elizabeth Jennifer Linda Barbara Susan Jessica Sarah Karen Lisa Nancy Margaret Sandra Emily Michelle
    Kimberly Amanda Melissa Laura Rebecca Sharon Cynthia Amy Angela Anna Ruth Brenda Pamela Nicole Katherine Christine
    Helen Emma Rachel Carolyn Janet Maria Catherine Heather Diane Julie Joyce Victoria Christina Joan Lauren Olivia
    Martha Judith Andrea Hannah Jane Alice Julia Sophie Rose Ann Anne Kate Lucy Claire Eva Clara Diana Ellen Irene
    Charlotte Caroline Grace Sara Marie Sally Betty Dorothy Eleanor Molly
""")

MALE_PEOPLE = _words(
    "king father uncle brother husband boy man prince grandfather nephew gentleman son actor monk lord"
)

FEMALE_PEOPLE = _words(
    "queen mother aunt sister wife girl woman princess grandmother niece lady daughter actress nun duchess"
)

PLACES = _words("""
    store park school garden station restaurant office hospital library market museum theater beach house church bank
    farm hotel airport castle cafe zoo factory kitchen village lake forest gym harbor club
""")

OBJECTS = _words("""
    book ring drink ball letter gift ticket key phone camera map flower bottle basket necklace box coin pen computer
    sandwich bag lamp watch painting hat cup towel magazine cake blanket
""")

EVENTS = _words("""
    war campaign conflict project expedition siege journey voyage trial famine drought strike reign dynasty alliance
    rebellion revolution crisis occupation partnership treaty debate dispute tour mission struggle battle plague
    recession boom festival marriage career rule exhibition operation program study construction reform movement trade
    investigation era peace friendship blockade migration
""")

NOUNS = _words("""
    apple river table window mountain paper stone bridge cloud letter horse engine island candle mirror button
    bottle ladder pocket market silver winter summer garden forest planet ocean desert valley shadow finger shoulder
    blanket basket hammer needle pencil circle square corner ticket station railway harbor palace temple tower
    village doctor farmer soldier teacher student artist writer singer lawyer judge dinner breakfast butter cheese
    coffee sugar pepper orange lemon potato tomato rabbit monkey tiger lion eagle spider snake whale chicken
    guitar piano violin drum song dance story poem picture movie camera radio television computer keyboard
    battery cable wire pipe metal copper iron gold wood glass plastic cotton leather rubber paint brush bucket
    blade knife spoon fork plate cup bowl chair sofa lamp carpet door roof wall floor kitchen bedroom office
    school hospital library museum theater hotel airport factory farm field fence road street wheel truck boat ship
    rocket signal weather storm thunder rain snow wind fire smoke dust sand
""")

ARGUMENTS = _words("""
    size name path value key index count data file line text type code mode level state order limit offset width height
    color label group user token source target result message request response server client host port address
    password event action task job node edge graph tree list table row column field record entry item element block
    page image frame layer window screen button format style version status error option config filter query rule
    score rate weight length depth range step batch sample model shape scale angle speed time date year month day hour
    start end stop first last next root parent child owner member session channel stream buffer cache memory device
    driver module package library resource project folder directory
""")

COUNTABLE_NOUNS = tuple(
    (one, one + "s")
    for one in _words("""
        key author doctor teacher student farmer actor singer painter manager driver officer guard pilot lawyer
        book picture letter table chair lamp car truck boat ship train plane house tower bridge garden tree flower
        river lake road street door window wall room hotel school hospital museum factory farm shop office
        dog cat horse bird cow duck cook neighbor friend visitor player writer artist soldier
        machine engine computer phone camera clock painting poem song report product
    """)
)
"""Singular and plural."""

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Austria": "Vienna", "Greece": "Athens", "Poland": "Warsaw", "Hungary": "Budapest", "Ireland": "Dublin",
    "England": "London", "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen",
    "Russia": "Moscow", "Belgium": "Brussels", "Romania": "Bucharest", "Bulgaria": "Sofia", "Serbia": "Belgrade",
    "Croatia": "Zagreb", "Ukraine": "Kiev", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Iraq": "Baghdad", "Iran": "Tehran", "Syria": "Damascus", "Lebanon": "Beirut", "Japan": "Tokyo",
    "China": "Beijing", "Thailand": "Bangkok", "Vietnam": "Hanoi", "Indonesia": "Jakarta", "Cuba": "Havana",
    "Peru": "Lima", "Chile": "Santiago", "Canada": "Ottawa", "Australia": "Canberra", "Pakistan": "Islamabad",
    "Afghanistan": "Kabul", "Nepal": "Kathmandu", "Venezuela": "Caracas", "Zimbabwe": "Harare", "Scotland": "Edinburgh",
    "Switzerland": "Bern", "Taiwan": "Taipei", "Qatar": "Doha", "Jordan": "Amman", "Wales": "Cardiff",
    "Latvia": "Riga", "Ghana": "Accra", "Libya": "Tripoli", "Senegal": "Dakar",
}  # fmt: skip
"""Countries whose names need no article, and their capitals."""
