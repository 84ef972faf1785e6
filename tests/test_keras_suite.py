"""What `keras.Model` passes, CrossRegModel passes: Keras's own tests.

A test that Keras passes and we do not is a bug of ours. The few that cannot
pass are in `EXCLUDED`, with the reason; one of them that passes fails here.
"""

import re
import unittest

import keras
import keras_suite
import pytest
from helpers import HAS_TENSORFLOW
from keras.src.models.functional import Functional

import keras_crossreg as kcr

# Keras's tests warn, on purpose or not, of what they do: data shuffled twice,
# weights that no loss reaches, NaN. Their own checks of warnings work all the
# same.
pytestmark = pytest.mark.filterwarnings("ignore")

# Each with the classes of Keras that it keeps.
MODULES = {
    "trainers.trainer_test": (),
    "models.model_test": (),
    "models.functional_test": (),
    # It asks what a `Sequential` makes inside.
    "models.sequential_test": (Functional,),
    "models.cloning_test": (),
    "saving.saving_lib_test": (),
    "saving.saving_api_test": (),
    "saving.serialization_lib_test": (),
    "export.saved_model_test": (),
    "utils.summary_utils_test": (),
    "callbacks.backup_and_restore_test": (),
    "callbacks.callback_test": (),
    "callbacks.csv_logger_test": (),
    "callbacks.early_stopping_test": (),
    "callbacks.lambda_callback_test": (),
    "callbacks.learning_rate_scheduler_test": (),
    "callbacks.model_checkpoint_test": (),
    "callbacks.monitor_callback_test": (),
    "callbacks.reduce_lr_on_plateau_test": (),
    "callbacks.swap_ema_weights_test": (),
    "callbacks.tensorboard_test": (),
    "callbacks.terminate_on_nan_test": (),
}

# What Keras tests of a backend alone.
OF_BACKENDS = {
    "tensorflow": (
        "backend.tensorflow.saved_model_test",
        "backend.tensorflow.distribute_test",
    ),
    "jax": ("backend.jax.trainer_test",),
}
MODULES |= dict.fromkeys(OF_BACKENDS.get(keras.backend.backend(), ()), ())

# What imports TensorFlow, whatever the backend is.
if not HAS_TENSORFLOW:
    for name in (
        "export.saved_model_test",
        "callbacks.swap_ema_weights_test",
        "callbacks.tensorboard_test",
    ):
        del MODULES[name]

HDF5 = (
    "the legacy HDF5 format keeps the name of a model's class without its "
    "package, and no arguments of `compile` but Keras's own"
)
EXCLUDED = {
    "CloneModelTest.test_compiled_model_cloning": (
        "`clone_model` makes a plain `keras.Sequential` of every `Sequential`, "
        "which does not know our arguments of `compile`"
    ),
    "SavingAPITest.test_model_api_endpoint_h5": HDF5,
    "SavingBattleTest.test_legacy_h5_format": HDF5,
    "SavingBattleTest.test_normalization_legacy_h5_format": HDF5,
    "SavingBattleTest.test_legacy_load_skips_missing_nested_containers": (
        "fails with `keras.Model` too: Keras does not install the file it reads"
    ),
}

if keras.backend.backend() == "jax":
    EXCLUDED["TestTrainer.test_fit_eval_flow_for_jax_model_weights"] = (
        "it asks that the variables hold nothing while a model trains; here "
        "they hold the newest state, whatever stops the training"
    )
    if len(keras.distribution.list_devices()) == 1:
        EXCLUDED |= dict.fromkeys(
            (
                "JAXTrainerTest.test_warns_when_model_built_outside_scope_"
                + name
                for name in ("DataParallel", "ModelParallel")
            ),
            "fails with `keras.Model` too, where there is one device alone",
        )

# These make data of TensorFlow's, or read files by it, on every backend.
OF_TENSORFLOW = re.compile(
    "test_.*_sparse_tf_|test_predict_preserve_order"
    "|test_fit_with_data_adapter_tf_|test_remove_weights_only_saving"
    "|test_disk_io_store_remote|test_steps_per_execution_.*_unknown_data"
)

# Of the trainer tests these are slow: grids of eager, compiled and XLA, whose
# middle is quick enough, and data of every adapter.
SLOW = re.compile(
    r"test_steps_per_.*(_eager|_jit|_unrolled)"
    r"|test_fit_with_val_split.*(_eager|_jit|steps)"
    r"|test_fit_with_data_adapter|test_on_batch_methods_(jit|eager)"
    r"|test_(recompile|loss_weights|for_eval_epoch_iterator)$"
    r"|test_fit_with_custom_train_step|test_(evaluate|predict).*_jit"
)


def mark(module, case):
    """Marks the excluded and the slow tests of a class."""
    for name in unittest.TestLoader().getTestCaseNames(case):
        reason = EXCLUDED.get(f"{case.__name__}.{name}")
        if reason:
            mark = pytest.mark.xfail(reason=reason, strict=True)
        elif OF_TENSORFLOW.match(name) and not HAS_TENSORFLOW:
            mark = pytest.mark.skip("it takes TensorFlow")
        elif module != "trainers.trainer_test" or SLOW.match(name):
            mark = pytest.mark.slow
        else:
            continue
        setattr(case, name, mark(getattr(case, name)))


LOADED = {name: keras_suite.load(name, keep) for name, keep in MODULES.items()}
CASES = [
    (name, case)
    for name, module in LOADED.items()
    for case in vars(module).values()
    if isinstance(case, type)
    and issubclass(case, unittest.TestCase)
    and case.__module__ == module.__name__
]
for module, case in CASES:
    mark(module, case)
# Pytest would take it for another class.
del case
globals().update({case.__name__: case for _, case in CASES})


def test_no_class_hides_another():
    assert len({case.__name__ for _, case in CASES}) == len(CASES)


def test_what_is_excluded_is_there():
    known = {
        f"{case.__name__}.{name}"
        for _, case in CASES
        for name in unittest.TestLoader().getTestCaseNames(case)
    }
    assert set(EXCLUDED) <= known


@pytest.mark.parametrize("name", MODULES)
def test_the_models_are_ours(name):
    for value in vars(LOADED[name]).values():
        if isinstance(value, type) and issubclass(value, keras.Model):
            assert (
                issubclass(value, kcr.CrossRegModel) or value in MODULES[name]
            )


def test_keras_is_as_it_was():
    assert keras.Model.__module__ == "keras.src.models.model"
    assert type(keras.Sequential()) is keras.Sequential
