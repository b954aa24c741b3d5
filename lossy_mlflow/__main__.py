"""`python -m lossy_mlflow` is `lossy`."""

from lossy_mlflow.cli import main

if __name__ == "__main__":
    main()
