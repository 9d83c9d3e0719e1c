"""YAML -> funnel -> HTTP: python serve.py [--config configs/serve.yaml] [--data FOLDER] [--serve.port 8000]."""

from ltrr.cli.arguments import arguments, main
from ltrr.serving.main import serve


def run() -> None:
    flags, overrides = arguments(__doc__, "configs/serve.yaml")
    serve(flags.config, overrides)


if __name__ == "__main__":
    main(run)
