"""A setting is explained once: by the comment behind it in conf/config.yaml."""

from sweep.base.config import Settings
from sweep.base.options import ConfigPath
from sweep.cli.keys import _meanings_of_fields, keys_of


def test_every_setting_is_explained_in_the_yaml_alone():
    """What conf/config.yaml does not have, experiments write, and the class explains."""
    unexplained = {key.name for key in keys_of(ConfigPath.of_user([])) if not key.meaning}
    assert not unexplained
    assert _meanings_of_fields(Settings).keys() == {"study_differences"}
