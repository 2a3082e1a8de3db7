from dataclasses import replace

import pytest

from harness.file_names import A5CurveKey, A5ScoreKey, ToyCurveKey, ToyScoreKey, parse_name

TOY = ToyCurveKey("Mamba", 2, True, 3, 0.0001, 256, 4)
A5 = A5CurveKey("Transformer", 16, 4, 0.0002, 1024, 2345, 64)
RELEASED = {
    ToyScoreKey(2, 0): ["lin_cde_mse_2_run_0.npy"],
    TOY: [
        "steps_100_Mamba_True_2_0.0001_256_3_run_4.npy",
        "rmse_100_Mamba_True_2_0.0001_256_3_run_4.npy",
    ],
    A5ScoreKey(20): ["linear_cde_length_20_steps.npy", "linear_cde_length_20_val_accs.npy"],
    A5CurveKey("S4", 5, 2, 0.0001, 1024, 2345): [
        "S4_5_2_0.0001_1024_steps_run_2345.npy",
        "S4_5_2_0.0001_1024_acc_run_2345.npy",
    ],
    A5: [
        "Transformer_16_4_0.0002_1024_64_steps_run_2345.npy",
        "Transformer_16_4_0.0002_1024_64_acc_run_2345.npy",
    ],
}


def test_names_are_those_of_the_released_files():
    assert {key: list(key.names) for key in RELEASED} == RELEASED


@pytest.mark.parametrize(
    "key",
    [
        *RELEASED,
        ToyScoreKey(3, 12),
        replace(TOY, nonlinear=False, learning_rate=1e-05),
        replace(A5, learning_rate=1e-05),
    ],
)
def test_a_name_says_which_run_made_it(key):
    assert [parse_name(name) for name in key.names] == [key] * len(key.names)


@pytest.mark.parametrize(
    "name",
    [
        "S4_5_2_0.0001_1024_acc_run_2345.npy.tmp",
        ".S4_5_2_0.0001_1024_acc_run_2345.npy",
        "S4_5_2_0.0.1_1024_acc_run_2345.npy",
        "S4_5_2_0.0001_1024_rmse_run_2345.npy",
        "S4_5_2_0.0001_1024_64_32_acc_run_2345.npy",
        "linear_cde_length_3_accs.npy",
        ".linear_cde_length_3_steps.npy",
        "rmse_100_Mamba_true_2_0.0001_256_3_run_4.npy",
        "rmse_100_Mamba_True_2_0.0.1_256_3_run_4.npy",
        "rmse_100_Mamba_True_2_0.0001_256_3_run_4.npy.tmp",
        ".lin_cde_mse_2_run_0.npy",
        "lin_cde_mse_2_run_0.npy.tmp",
        "lin_cde_mse_02_run_0.npy",
        "S4_5_2_1e-4_1024_acc_run_2345.npy",
        "S4_5_2_nan_1024_acc_run_2345.npy",
    ],
)
def test_other_names_are_of_no_run(name):
    assert parse_name(name) is None
