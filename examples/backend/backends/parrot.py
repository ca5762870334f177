# backends/parrot.py
from backends.base import Hosted
from backends.declarations import Traits


class Parrot(Hosted):
    library = "backends.host.libraries.parrot_library"
    traits = Traits(continuous_batching=False, beam_search=False, quantisations="none")
