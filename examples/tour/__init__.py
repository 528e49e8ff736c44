"""A tour of agents: twelve programs, each in a file of its own, which run offline.

| program | what it shows |
|---|---|
| [chat](chat.py) | a conversation in the state of a virtual object |
| [error_handling](error_handling.py) | three attempts of a tool; then the handler or the model takes over |
| [human_approval](human_approval.py) | a tool that waits for a person, suspended, and is answered over HTTP |
| [human_approval_with_timeout](human_approval_with_timeout.py) | the same, denied when a durable timer ends |
| [multi_agent](multi_agent.py) | agents that hand over to each other in one handler |
| [parallel_tools](parallel_tools.py) | several tools of one response at the same time |
| [remote_agents](remote_agents.py) | agents of other services as tools |
| [sub_workflow](sub_workflow.py) | a tool that starts a workflow with a person in it, and awaits it |
| [workflow_sequential](workflow_sequential.py) | a chain: each agent works on what the one before has made |
| [workflow_parallel](workflow_parallel.py) | agents on all parts at the same time, then one that merges |
| [workflow_orchestrator](workflow_orchestrator.py) | a planner gives tasks, workers do them, an editor sums up |
| [workflow_evaluator_optimizer](workflow_evaluator_optimizer.py) | write and judge, until it is good enough |

Run one, and call it as its docstring says:

    $ restate-steps dev examples.tour.chat:app

The models follow scripts. To use a real one in place of all of them, name it, have its key in the environment, and the
package of its provider installed:

    $ pip install 'pydantic-ai-slim[openai]'
    $ TOUR_MODEL=openai:gpt-5 restate-steps dev examples.tour.chat:app
"""
