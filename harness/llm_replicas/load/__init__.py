"""Open-loop load: a plan, the schedule it stands for, the sending of it, and one raw record for every
request.
"""
