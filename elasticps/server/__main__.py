from elasticps.server.main import main

main()
