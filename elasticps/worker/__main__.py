from elasticps.starting import loading

with loading():  # what every script wants, torch with it
    from elasticps.worker.join import join  # noqa: F401
    from elasticps.worker.launch import main

main()
