"""The copy of workflow state in DynamoDB."""
