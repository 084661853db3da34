from elasticps.worker.launch import main

main()
