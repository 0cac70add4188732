#!/usr/bin/env python3
"""Boots virtual machines of their own kernel and systemd and runs the tests of this folder in them: what needs control groups
that may be changed, a service manager, or a machine that sleeps. Debian on x86-64 only; the processor is emulated, so that
it needs no right to a real one, and slow. Two machines share the work, since each keeps little more than one processor busy.

usage: run.py CACHE [NAME…]    CACHE keeps the kernel and the system's disk; only tests that contain a NAME, in one machine
       run.py CACHE --prepare  fetch both and no more

The programs are in the folder OLLMLX_BIN, the models in OLLMLX_MODEL_SMOL and OLLMLX_MODEL_SMOL_MLX. Needs root for
debootstrap, and qemu-system-x86, debootstrap, busybox-static and e2fsprogs.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading

HERE = pathlib.Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
#: In the order in which they are loaded.
MODULES = ("virtio_ring", "virtio", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_blk")
#: procps has the `kill` that units call.
SYSTEM = "systemd-sysv,dbus,procps,python3"
MEMORY_MIB = 3072
#: Emulated, a boot takes half a minute and a token a second or two; what hangs is ended by its own test long before.
TIME_S = 2400
STATUS = re.compile(rb"^guest: status (\d+)\s*$")
#: An emulator that falls over says nothing about what runs in it: the same machine is made again, this often at most. Seen once, of
#: Debian 12's, by SIGSEGV, before the first word of its guest.
EMULATORS_MAX = 3
FALLEN = {-signal.SIGSEGV, -signal.SIGBUS, -signal.SIGABRT, -signal.SIGILL}
#: Classes that take as long as all others together.
HALF = ("test_sleep.Sleep.", "test_sleep.SleepOnMlx.", "test_groups.GroupsOnMlx.")


def sh(*words, **more):
    return subprocess.run([str(word) for word in words], check=True, text=True, **more)


def quietly(*words, **more):
    sh(*words, stdout=subprocess.DEVNULL, **more)


def release():
    text = pathlib.Path("/etc/os-release").read_text()
    fields = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if fields.get("ID", "").strip('"') != "debian" or os.uname().machine != "x86_64":
        sys.exit("the virtual machine is only made on Debian x86-64")
    return fields["VERSION_CODENAME"].strip('"')


def kernel(cache):
    """(kernel image, folder of its modules), unpacked and not installed."""
    folder = cache / "kernel"
    if not folder.is_dir():
        text = sh("apt-cache", "depends", "linux-image-cloud-amd64", stdout=subprocess.PIPE).stdout
        package = re.search(r"Depends: (linux-image-\S+)", text)[1]
        part = cache / "kernel.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        sh("apt-get", "download", "-qq", package, cwd=part, stderr=subprocess.DEVNULL)
        (file,) = part.glob("*.deb")
        sh("dpkg", "-x", file, part)
        file.unlink()
        part.rename(folder)
    (image,) = folder.glob("boot/vmlinuz-*")
    return image, folder / "lib" / "modules"


def disk(image, folder, mib):
    image.unlink(missing_ok=True)
    quietly("mke2fs", "-q", "-t", "ext4", "-E", "root_owner=0:0", "-d", folder, image, f"{mib}M")


def system(cache, name):
    """The disk of a small system, the same release as this one so that programs built here run there."""
    image = cache / f"{name}.ext4"
    if not image.is_file():
        part = cache / "system.part"
        shutil.rmtree(part, ignore_errors=True)
        print(f"making a system of {name}", file=sys.stderr)
        quietly("debootstrap", "--variant=minbase", f"--include={SYSTEM}", name, part)
        for archive in (part / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        disk(cache / "system.ext4.part", part, 1536)
        shutil.rmtree(part)
        (cache / "system.ext4.part").rename(image)
    return image


def initramfs(cache, modules, image):
    tree = cache / "initramfs"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    shutil.copy("/bin/busybox", tree / "bin")
    shutil.copy(HERE / "init", tree / "init")
    (tree / "init").chmod(0o755)
    for index, name in enumerate(MODULES):
        (file,) = modules.rglob(f"{name}.ko")
        shutil.copy(file, tree / "modules" / f"{index}-{name}.ko")
    with open(image, "wb") as out:
        files = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
        subprocess.run(["/bin/busybox", "cpio", "-o", "-H", "newc"], input=files.encode(), stdout=out, cwd=tree, check=True,
                       stderr=subprocess.DEVNULL)


def libraries(programs):
    """Files of the shared libraries that they need, but for those of every system."""
    found = set()
    for program in programs:
        text = sh("ldd", program, stdout=subprocess.PIPE).stdout
        found |= {pathlib.Path(path) for path in re.findall(r"=> (/\S+)", text)}
    everywhere = re.compile(r"(libc|libm|libdl|libpthread|librt|ld-linux-x86-64|libgcc_s|libstdc\+\+)\.so")
    return {path for path in found if not everywhere.match(path.name)}


def payload(cache, image):
    tree = cache / "payload"
    shutil.rmtree(tree, ignore_errors=True)
    for folder in ("bin", "lib", "models"):
        (tree / folder).mkdir(parents=True)
    programs = pathlib.Path(os.environ["OLLMLX_BIN"])
    names = ("ollmlx", "ollmlx-worker-gguf", "ollmlx-worker-mlx")
    for name in names:
        shutil.copy(programs / name, tree / "bin")
    shutil.copytree(programs / "ollmlx-lib", tree / "bin" / "ollmlx-lib", dirs_exist_ok=True)
    loaded = [programs / name for name in names] + sorted((programs / "ollmlx-lib").glob("*.so"))
    for path in libraries(loaded):
        shutil.copy(path, tree / "lib")
    shutil.copy(os.environ["OLLMLX_MODEL_SMOL"], tree / "models" / "smol.gguf")
    shutil.copytree(os.environ["OLLMLX_MODEL_SMOL_MLX"], tree / "models" / "smol-mlx")
    for name in ("clients", "vm"):
        shutil.copytree(PROJECT / "tests" / name, tree / "tests" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "supervisor" / "service" / "ollmlx.service", tree)
    disk(image, tree, 512 + sum(file.stat().st_size for file in tree.rglob("*") if file.is_file()) // (1 << 20))
    shutil.rmtree(tree)


def shares():
    """The classes of each machine."""
    classes = [f"{path.stem}.{name}." for path in sorted(HERE.glob("test_*.py"))
               for name in re.findall(r"(?m)^class (\w+)\(", path.read_text())]
    return [HALF, [name for name in classes if name not in HALF]]


class Machine(threading.Thread):
    """Runs the tests that contain one of the names, and shows what the machine's console says."""

    def __init__(self, cache, image, names):
        super().__init__(daemon=True)
        self.label, self.status = names[0].removeprefix("test_").partition(".")[0], None
        drive = lambda path, more: ("-drive", f"file={path},format=raw,if=virtio,{more}")
        words = ("console=ttyS0", "quiet", "panic=-1", "systemd.show_status=false",
                 "systemd.getty_auto=false", "rw", "guest=" + ",".join(names))
        command = ("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", f"{MEMORY_MIB}",
                   "-nographic", "-no-reboot", "-nic", "none", "-kernel", image, "-initrd", cache / "initramfs.cpio",
                   "-append", " ".join(words), *drive(cache / f"{release()}.ext4", "snapshot=on"),
                   *drive(cache / "payload.ext4", "readonly=on"))
        self.command = ["timeout", "--kill-after=10", str(TIME_S), *map(str, command)]
        self.process = None
        self.start()

    def run(self):
        for _ in range(EMULATORS_MAX):
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            console = self.watch()
            if self.status is not None:
                return
            ended = f"{self.label}: the machine ended without a result (status {self.process.returncode})\n"
            sys.stdout.writelines([*console[-60:], ended])
            if self.process.returncode not in FALLEN:
                return

    def watch(self):
        """Until the machine has ended; returns what it said."""
        begun, console = False, []
        for line in self.process.stdout:
            begun = begun or line.startswith(b"guest: ")
            found = STATUS.match(line)
            self.status = int(found[1]) if found else self.status
            console.append(f"{self.label}: " + line.decode(errors="replace").replace("\r", ""))
            if begun:
                sys.stdout.write(console[-1])
                sys.stdout.flush()
        self.process.wait()
        return console


def main():
    cache = pathlib.Path(sys.argv[1]).absolute()
    cache.mkdir(parents=True, exist_ok=True)
    image, modules = kernel(cache)
    system(cache, release())
    if sys.argv[2:] == ["--prepare"]:
        return 0
    initramfs(cache, modules, cache / "initramfs.cpio")
    payload(cache, cache / "payload.ext4")
    # Whoever ends this one ends the machines.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    machines = [Machine(cache, image, names) for names in ([sys.argv[2:]] if sys.argv[2:] else shares())]
    try:
        for machine in machines:
            machine.join()
        return 0 if all(machine.status == 0 for machine in machines) else 1
    finally:
        for machine in machines:
            if machine.process:
                machine.process.terminate()
        (cache / "payload.ext4").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
