import sys

from elasticps.cli.entry import main

sys.exit(main())
