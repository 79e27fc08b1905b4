"""Settings that are known to work, one TOML file each; `npgpt train --preset NAME` reads them from here."""
