import sys

from elasticps.cli.main import main

sys.exit(main())
