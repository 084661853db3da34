"""What elasticps is measured by: ``python -m benchmarks`` is ``make bench``; a file is a subject.

Who is compared is a *contestant*: processes of its own that take their turns when told. Everything
that is a ratio comes from turns of one run. Nothing in elasticps imports from here.
"""
