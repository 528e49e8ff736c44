"""A tour of durable agents: twelve programs, one per file, which run offline.

| program | shows |
|---|---|
| [chat](chat.py) | a conversation in the state of a virtual object |
| [error_handling](error_handling.py) | three attempts of a tool, then the handler or the model takes over |
| [human_approval](human_approval.py) | a tool that suspends until a person approves it over HTTP |
| [human_approval_with_timeout](human_approval_with_timeout.py) | the same, denied when a durable timer expires |
| [multi_agent](multi_agent.py) | agents that hand a customer over to each other in one handler |
| [parallel_tools](parallel_tools.py) | several tool calls of one response, run concurrently |
| [remote_agents](remote_agents.py) | agents of other services, called as tools |
| [sub_workflow](sub_workflow.py) | a tool that starts a workflow with a human task, and awaits its result |
| [workflow_sequential](workflow_sequential.py) | a chain: each agent works on the output of the previous one |
| [workflow_parallel](workflow_parallel.py) | concurrent agents, one per part, then one that merges the results |
| [workflow_orchestrator](workflow_orchestrator.py) | a planner creates tasks, workers do them, an editor sums up |
| [workflow_evaluator_optimizer](workflow_evaluator_optimizer.py) | write and judge until the text is good enough |

Run a program, then call it with the commands in its docstring:

    $ restate-steps dev examples.tour.chat:app

The models are scripted. To use a real model instead, install its provider's package, set its API key in the
environment, and name the model:

    $ pip install 'pydantic-ai-slim[openai]'
    $ TOUR_MODEL=openai:gpt-5 restate-steps dev examples.tour.chat:app
"""
