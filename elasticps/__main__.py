from elasticps.cli.main import main

main()
