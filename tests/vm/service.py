"""`ollmlx serve` as systemd runs it, by the unit that the project has."""

import pathlib
import shutil
import subprocess
import tempfile

import house

# The unit has a /tmp of its own, so the folders that a test shares with it lie elsewhere.
tempfile.tempdir = "/srv"

UNIT = "ollmlx.service"
DROP_IN = pathlib.Path(f"/etc/systemd/system/{UNIT}.d/test.conf")
GROUPS = pathlib.Path("/sys/fs/cgroup")


def systemctl(*words, check=True):
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0 or not check, done.stderr + subprocess.run(
        ["journalctl", "-n", "30", "--no-pager"], capture_output=True, text=True).stdout
    return done.stdout.strip()


def told(name):
    return systemctl("show", UNIT, "--value", "--property", name)


class Service(house.Server):
    """`unit`: further lines for its [Service]."""

    def __init__(self, models=("smol",), backend="gguf", unit=(), **settings):
        self.unit = unit
        # One thread: what the emulated processors share they are slow at.
        super().__init__(models, backend, **({"OLLMLX_THREADS": "1"} | settings))

    def launch(self):
        names = ("HOME", "OLLAMA_HOST", *(name for name in self.env if name.startswith("OLLMLX_")))
        lines = [f'Environment="{name}={self.env[name]}"' for name in names]
        # Ignored where it is gone: a test may start the unit after its folder.
        lines += [f"ReadWritePaths=-{self.folder}", f"StandardOutput=append:{self.log_path}", f"StandardError=append:{self.log_path}"]
        DROP_IN.parent.mkdir(exist_ok=True)
        DROP_IN.write_text("\n".join(["[Service]", *lines, *self.unit, ""]))
        self.log_path.touch()
        systemctl("daemon-reload")
        systemctl("start", UNIT)

    @property
    def pid(self):
        return int(told("MainPID"))

    def status(self):
        return None if told("ActiveState") in ("active", "activating", "reloading") else told("Result")

    @property
    def group(self):
        return GROUPS / told("ControlGroup").lstrip("/")

    def answers(self):
        try:
            return self.raw("GET", "/healthz", seconds=10)[0] == 200
        except OSError:
            return False

    def kill(self, kind):
        systemctl("kill", "--kill-who=main", f"--signal={kind.name}", UNIT)

    def reload(self):
        systemctl("reload", UNIT)

    @staticmethod
    def forget():
        systemctl("reset-failed", UNIT, check=False)

    def stop(self):
        systemctl("stop", UNIT)
        self.forget()
        shutil.rmtree(self.folder, ignore_errors=True)
