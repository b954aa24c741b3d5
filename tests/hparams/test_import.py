import subprocess
import sys


def test_the_tree_and_the_catalogue_load_neither_torch_nor_mlflow_nor_numpy():
    code = """
import sys
import lossy_mlflow.hparams as hparams
hparams.get_hparams("vae10_digits"), hparams.set_names("mnist")
print(*sorted({"torch", "torchvision", "mlflow", "numpy", "click", "sklearn"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
