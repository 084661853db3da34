from elasticps.starting import loading

with loading():
    from elasticps.server.main import main

main()
