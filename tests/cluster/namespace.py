"""namespace.py — start this test again as the only thing in a process and mount namespace of its own, so that whatever
happens the kernel ends every daemon with it and no mount is left."""
import os, subprocess, sys


def lacks(*tools):
    """Why the test cannot run here, or None."""
    import shutil
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    for tool in ("unshare", *tools):
        if not shutil.which(tool):
            return "%s is not installed" % tool
    if os.getuid() != 0:
        return "several hosts on one machine need root"
    if subprocess.run(["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "true"], capture_output=True).returncode:
        return "this environment permits no namespaces"
    return None


def inside():
    return os.environ.get("QSWEEP_NAMESPACE") == "1"


def enter():
    os.environ["QSWEEP_NAMESPACE"] = "1"
    os.execvp("unshare", ["unshare", "--mount", "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "bash", "-c",
                          '/usr/bin/python3 "$0"; exit $?', os.path.abspath(sys.argv[0])])
