"""The registry of all chaos cases: those of this folder, and tests that the suite has already."""

from __future__ import annotations

from tests.chaos import storage_cases, training_cases
from tests.chaos.outcome import Case

_RAY = "tests/chaos/test_ray_chaos.py::test_kills_on_three_nodes_leave_the_digest_as_it_is"
_TRAIN = "tests/chaos/test_train_chaos.py"
_LINE = "tests/chaos/test_s3_line.py"
_RESUME = "tests/numerics/test_resume.py"


def _tests(name: str, fault: str, how: str, *ids: str) -> Case:
    return Case(name=name, fault=fault, how=how, tests=ids)


CASES = [
    _tests("ray-kills", "worker SIGKILL, node loss, driver SIGKILL in one curation", "three nodes, four kills", _RAY),
    _tests("ray-worker", "worker SIGKILL in generation", "two workers",
           "tests/integration/test_execution_ray.py::test_killed_workers_change_nothing"),
    _tests("driver", "driver SIGKILL", "ten kills at random files",
           "tests/chaos/test_curation_kill.py::test_ten_kills_leave_the_digest_as_it_is"),
    _tests("head-loss", "head loss", "all processes of the head are killed; a new head, the same command",
           "tests/chaos/test_head_loss.py::test_a_lost_head_costs_the_units_in_flight"),
    _tests("oom", "OOM kill of one actor", "Ray's memory monitor with a low threshold",
           "tests/chaos/test_memory_kill.py::test_a_worker_that_ray_kills_for_memory_ends_the_job_in_bounds"),
    _tests("node-training", "node loss in training", "two nodes; one killed, another added",
           f"{_TRAIN}::test_a_node_is_lost_and_another_comes"),
    _tests("sigstop", "SIGSTOP of a rank", "two workers, one stopped",
           f"{_TRAIN}::test_a_stalled_worker_is_named_and_the_run_goes_on"),
    _tests("preemption", "preemption notice", "15 s, then the node is killed",
           f"{_TRAIN}::test_a_node_with_a_preemption_notice_costs_no_step_before_it"),
    _tests("training-kills", "training killed in every phase", "eleven deaths, five of them at random",
           f"{_RESUME}::test_killed_at_any_moment_and_resumed_equals_undisturbed"),
    _tests("autoscaling", "nodes come, go, and one is killed", "0 to 2 to 0 nodes",
           "tests/chaos/test_autoscaling.py::test_two_nodes_come_and_go_and_a_kill_changes_nothing"),
    _tests("submitted", "jobs of two users by submission; one is stopped", "a head with a token, from another folder",
           "tests/chaos/test_submitted.py::test_two_users_and_a_stop_that_leaves_nothing"),
    _tests("s3-line", "driver SIGKILL in curation, encoding, training (three times) and generation on S3; a flipped "
           "object", "the whole line, compared with a folder",
           f"{_LINE}::test_the_line_on_an_object_store_is_that_of_a_folder",
           f"{_LINE}::test_a_line_that_is_killed_in_each_command_ends_the_same",
           f"{_LINE}::test_a_flipped_object_is_named_and_garbage_alone_goes",
           f"{_LINE}::test_a_second_writer_is_refused_however_an_object_is_sent"),
    *storage_cases.CASES,
    *training_cases.CASES,
    _tests("mlflow-down", "MLflow is killed and comes back", "SIGKILL of the server",
           "tests/integration/test_mlflow_server.py::test_every_point_once_through_a_killed_server"),
    _tests("mlflow-wrong", "MLflow hangs, answers 401, 403, 500", "a server that does so",
           "tests/integration/test_wrong_server.py::test_the_job_goes_on_and_ends_in_time",
           "tests/integration/test_wrong_server.py::test_a_job_does_not_start_with_such_a_server"),
    _tests("damaged-shard", "corrupted shard", "bits, cuts, deletion",
           "tests/unit/test_storage_verification.py::test_damage_is_named_and_the_printed_remedy_makes_it_again_alone"),
    _tests("damaged-checkpoint", "corrupted checkpoint", "a flipped byte",
           f"{_RESUME}::test_a_damaged_checkpoint_is_named_and_the_one_before_is_used"),
    _tests("damaged-record", "corrupted manifest and ledger record", "a flipped bit anywhere",
           "tests/unit/test_storage_verification.py::test_a_bit_flipped_anywhere_in_a_record_is_found",
           "tests/unit/test_ledger_pages.py::test_a_damaged_record_is_in_no_page_and_is_named"),
    _tests("two-writers", "two and more writers of one version", "three jobs at once",
           "tests/integration/test_two_jobs.py::test_three_jobs_of_one_config_make_one_version",
           "tests/integration/test_two_jobs.py::test_two_configs_make_two_versions_and_one_is_the_head"),
    _tests("poison-row", "a row that crashes, hangs or takes all memory of native code", "the decoder does so",
           "tests/integration/test_fetch_decoder.py::test_a_crash_a_hang_and_a_memory_hog_cost_one_row_each"),
    _tests("goodput", "a kill per minute in training", "SIGKILL at fixed times, against the simulator",
           "tests/chaos/test_goodput.py::test_goodput_under_a_kill_every_minute_is_the_simulators"),
]  # fmt: skip
