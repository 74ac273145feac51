from meshnode.worker import confinement


def test_a_child_learns_nothing_of_our_settings() -> None:
    ours = {
        "MESHNODE_TOKEN": "mn1-secret",
        "AWS_SECRET_ACCESS_KEY": "x",
        "PATH": "/bin",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "2",
    }
    theirs = confinement.environment(ours)

    assert set(theirs) <= {"PATH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "GGML_NO_BACKTRACE", "PYTHONPATH"}
    assert theirs["PATH"] == "/bin"
    assert theirs["GGML_NO_BACKTRACE"] == "1"


def test_a_file_in_the_working_directory_cannot_pass_for_a_module() -> None:
    assert "-P" in confinement.command("meshnode.worker.process", "3")
