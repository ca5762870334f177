# backends/parrot.py
from backends.base import Hosted


class Parrot(Hosted):
    library = "backends.host.libraries.parrot_library"
